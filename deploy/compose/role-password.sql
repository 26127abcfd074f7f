-- Run by psql when a database's volume is empty: the grants make the role, its password comes from the secret.
\set password `cat /run/secrets/tailwater_password`
ALTER ROLE tailwater PASSWORD :'password';
