//! Claims about who is trusted.

use std::time::Duration;

use super::*;

/// Inside the dates of the certificates below, which last a year.
const NOW: u64 = 1795329905;
const YEARS: u64 = 366 * 86_400 * 2;

/// An authority, a certificate for db.internal by it, and a self-signed one for db.internal that says it is an authority,
/// as `openssl req -x509` makes it. Their keys were thrown away.
const AUTHORITY: &str = "-----BEGIN CERTIFICATE-----
MIIBbjCCARWgAwIBAgIUQmGaNKLBzRhb9EiHU3RerOHJ8oowCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwHhcNMjYxMTIyMDU0NTA1WhcNMjcxMTIyMDU0NTA1WjAN
MQswCQYDVQQDDAJjYTBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABJYXWU+F5R+Q
X9/HLLmosbsFvMzKGGzjZpcoOxLNCZWtp9lIE4M3VJu5ZAuywLyFarzczREav+fr
qhhoY+NnOG+jUzBRMB0GA1UdDgQWBBQ1++BFTB6IULkr0OVfAok0665aEzAfBgNV
HSMEGDAWgBQ1++BFTB6IULkr0OVfAok0665aEzAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0cAMEQCIAE3qN3nzFUlGNT6NG2gSGZOL3LMJo6rnFnJ+hfYI8cX
AiBb8ST0/PJUnnGO6pfiva6vrr7KcTYj7/o4sxw4yYDQRg==
-----END CERTIFICATE-----";
const SERVER: &str = "-----BEGIN CERTIFICATE-----
MIIBizCCATCgAwIBAgIUO/J8LZodqPsCNmYLAYMd73/Ypg0wCgYIKoZIzj0EAwIw
DTELMAkGA1UEAwwCY2EwHhcNMjYxMTIyMDU0NTA1WhcNMjcxMTIyMDU0NTA1WjAW
MRQwEgYDVQQDDAtkYi5pbnRlcm5hbDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IA
BLPZ3tZe3NivKFP8swYGMHvkQ5rr6hqdrut1IEM6Px2+znFboVcD4vaFgof3qajF
26n7hY7j3OjRGXAQwZaQUhKjZTBjMBYGA1UdEQQPMA2CC2RiLmludGVybmFsMAkG
A1UdEwQCMAAwHQYDVR0OBBYEFJdEILYF9SssYh11KtC1zosNk613MB8GA1UdIwQY
MBaAFDX74EVMHohQuSvQ5V8CiTTrrloTMAoGCCqGSM49BAMCA0kAMEYCIQDavjnn
ReuJ3ONSVRpf7QaYEBNKIDt+7Zj8PDjn4hrXugIhAL8IKDxVCQADdpcl9Sl8evIE
R6CkwvcjEq2G6XlfqETK
-----END CERTIFICATE-----";
const SELF_SIGNED: &str = "-----BEGIN CERTIFICATE-----
MIIBmTCCAT+gAwIBAgIUTcZrftapbJnm4QvSx4mzqd/iOe8wCgYIKoZIzj0EAwIw
FjEUMBIGA1UEAwwLZGIuaW50ZXJuYWwwHhcNMjYxMTIyMDU0NTA1WhcNMjcxMTIy
MDU0NTA1WjAWMRQwEgYDVQQDDAtkYi5pbnRlcm5hbDBZMBMGByqGSM49AgEGCCqG
SM49AwEHA0IABAMm8p8qnAwOACCCAfcdI5Rx5UzHgEWdS54QxzLFg5LxEdCvo5jA
072A47nnjUKyOs2s8+f0WXTYc5SAg6AM1mejazBpMB0GA1UdDgQWBBRtbFFZalmO
iAKIzAEoOs35pPdOVDAfBgNVHSMEGDAWgBRtbFFZalmOiAKIzAEoOs35pPdOVDAP
BgNVHRMBAf8EBTADAQH/MBYGA1UdEQQPMA2CC2RiLmludGVybmFsMAoGCCqGSM49
BAMCA0gAMEUCIE2p4s9l4Dh/gGNnw7PvogKfLEWd/BOpc/hmcv3CN5fqAiEArnoa
6D5ECfW8Fqoug6nOYhWB2lqLsOMJ+DuCeXVyx98=
-----END CERTIFICATE-----";

fn url(parameters: &str) -> PgUrl {
    PgUrl::parse(&format!("postgres://u@db.internal/d?{parameters}")).expect("well formed")
}

#[test]
fn only_disable_is_plain_text() {
    assert!(client_config(&url("sslmode=disable")).expect("nothing to read").is_none());
    assert!(client_config(&url("sslmode=require")).expect("nothing to read").is_some());
}

#[test]
fn unreadable_and_empty_certificate_files_are_named() {
    let missing = client_config(&url("sslrootcert=/nowhere/ca.pem")).expect_err("no such file");
    assert_eq!(missing.to_string(), "cannot read certificates from \"/nowhere/ca.pem\"");
    let empty = client_config(&url("sslmode=verify-ca&sslrootcert=/dev/null")).expect_err("empty");
    assert!(matches!(empty, TlsError::NoCertificate(_)), "{empty}");
    let key = client_config(&url("sslmode=require&sslcert=/dev/null&sslkey=/dev/null")).expect_err("empty");
    assert!(matches!(key, TlsError::NoCertificate(_)), "{key}");
}

#[test]
fn server_names_are_hosts_and_addresses() {
    assert!(server_name("db.internal").is_ok());
    assert!(server_name("::1").is_ok());
    assert!(server_name("no name").is_err());
}

fn certificate(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("well formed")
}

/// Is a server that calls itself `host` and shows `shown` trusted, where `trusted` stands in sslrootcert?
fn is_trusted(name: Name, trusted: &str, shown: &str, host: &str, now: u64) -> bool {
    let provider = Arc::new(ring::default_provider());
    let verifier = chain_verifier(vec![certificate(trusted)], name, &provider).expect("usable").expect("not empty");
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
    let host = server_name(host).expect("a name");
    verifier.verify_server_cert(&certificate(shown), &[], &host, &[], now).is_ok()
}

#[test]
fn chain_name_and_dates_decide() {
    let cases = [
        (Name::Verified, AUTHORITY, SERVER, "db.internal", NOW, true),
        (Name::Verified, AUTHORITY, SERVER, "other.internal", NOW, false),
        (Name::Verified, AUTHORITY, SERVER, "db.internal", NOW + YEARS, false),
        (Name::Verified, SELF_SIGNED, SERVER, "db.internal", NOW, false),
        (Name::Ignored, AUTHORITY, SERVER, "other.internal", NOW, true),
        (Name::Ignored, AUTHORITY, SERVER, "other.internal", NOW + YEARS, false),
        (Name::Ignored, SELF_SIGNED, SERVER, "other.internal", NOW, false),
    ];
    for (name, trusted, shown, host, now, expected) in cases {
        assert_eq!(is_trusted(name, trusted, shown, host, now), expected, "{name:?} {host} {now}");
    }
}

#[test]
fn self_signed_certificate_is_trusted_only_where_it_is_pinned() {
    let cases = [
        (Name::Verified, SELF_SIGNED, "db.internal", NOW, true),
        (Name::Verified, SELF_SIGNED, "other.internal", NOW, false),
        (Name::Verified, SELF_SIGNED, "db.internal", NOW + YEARS, false),
        (Name::Ignored, SELF_SIGNED, "other.internal", NOW, true),
        (Name::Ignored, SELF_SIGNED, "other.internal", NOW + YEARS, false),
        (Name::Ignored, AUTHORITY, "db.internal", NOW, false),
    ];
    for (name, trusted, host, now, expected) in cases {
        assert_eq!(is_trusted(name, trusted, SELF_SIGNED, host, now), expected, "{name:?} {host} {now}");
    }
}
