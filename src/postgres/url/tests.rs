//! Claims about addresses.

use proptest::prelude::*;

use super::*;

fn parse(text: &str) -> PgUrl {
    PgUrl::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn url_and_pairs_say_the_same() {
    let url = parse("postgres://tail%40water:s%2Fcr%20t@db1:5433,db2/lms?sslmode=verify-ca&options=-c%20a%3Db");
    let pairs = parse(
        r"host=db1,db2 port=5433,5432 user=tail@water password = 's/cr t' dbname=lms sslmode=verify-ca options='-c a=b'",
    );
    assert_eq!(url, pairs);
    assert_eq!(url.to_string(), "tail@water@db1:5433,db2:5432/lms");
    assert_eq!(url.password(), Some(Secret::new("s/cr t")));
    assert_eq!(url.options.as_deref(), Some("-c a=b"));
}

#[test]
fn only_this_machine_is_trusted_without_tls() {
    let cases = [
        ("postgres://u@localhost/d", SslMode::Disable),
        ("postgres://u@127.0.0.9/d", SslMode::Disable),
        ("postgres://u@[::1]:5433/d", SslMode::Disable),
        ("postgres://u@%2Fvar%2Frun%2Fpostgresql/d", SslMode::Disable),
        ("postgres:///d?host=/var/run/postgresql&user=u", SslMode::Disable),
        ("postgres://u@db.internal/d", SslMode::VerifyFull),
        ("postgres://u@localhost,db.internal/d", SslMode::VerifyFull),
        ("postgres://u@localhost/d?sslmode=require", SslMode::Require),
        ("postgres://u@db.internal/d?sslmode=disable", SslMode::Disable),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(text).ssl_mode, expected, "{text}");
    }
}

#[test]
fn hosts_are_told_apart() {
    let url = parse("postgres://u@[fe80::1]:5433,%2Frun%2Fpg,db:1/");
    assert_eq!(
        url.endpoints,
        [
            Endpoint { address: Address::Tcp("fe80::1".into()), port: 5433 },
            Endpoint { address: Address::Unix("/run/pg".into()), port: 5432 },
            Endpoint { address: Address::Tcp("db".into()), port: 1 },
        ]
    );
    assert_eq!(url.to_string(), "u@[fe80::1]:5433,/run/pg:5432,db:1/u");
}

#[test]
fn each_mistake_is_named_without_the_secret() {
    let port = || UrlError::Value { word: "port", expected: "a number from 1 to 65535, or one for each host" };
    let cases = [
        ("mysql://u:hunter2@h/d", UrlError::Form),
        ("postgres://u:hunter2@h:0/d", port()),
        ("postgres://u:hun/ter2@h/d", port()),
        ("postgres://u:hunter2%zz@h/d", UrlError::PercentEncoding),
        ("postgres://u:hunter2%00@h/d", UrlError::PercentEncoding),
        ("postgres://:hunter2@h/d", UrlError::Missing("user")),
        ("postgres://u:hunter2@/d", UrlError::Missing("host")),
        ("postgres://u@h/d?sslmod=require", UrlError::UnknownWord { meant: Some("sslmode") }),
        ("host=h user=u password=a hunter2=b", UrlError::UnknownWord { meant: None }),
        ("host=h user=u password='hunter2", UrlError::Form),
        ("host=h user=u password=hunter hunter2", UrlError::Form),
        ("postgres://u@h/d?passfile=x", UrlError::RefusedWord("passfile")),
        ("postgres://u@h/d?sslmode=prefer", UrlError::WeakSslMode("prefer")),
        ("postgres://u@h/d?sslmode=allow", UrlError::WeakSslMode("allow")),
        ("postgres://u@h/d?sslcert=a", UrlError::Missing("sslkey beside sslcert")),
        ("host=a,b,c port=1,2 user=u", UrlError::Value { word: "port", expected: "one number, or one for each host" }),
    ];
    for (text, expected) in cases {
        let error = PgUrl::parse(text).expect_err(text);
        assert_eq!(error, expected, "{text}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{text}");
    }
}

#[test]
fn password_is_never_shown() {
    let url = parse("postgres://u:hunter2@h/d");
    assert!(!format!("{url:?} {url:#?} {url}").contains("hunter2"));
    assert_eq!(url.clone().or_password(Some("other")), url);
    assert_eq!(parse("postgres://u@h/d").or_password(Some("x")).password(), Some(Secret::new("x")));
}

#[test]
fn zero_timeout_means_the_default_not_for_ever() {
    assert_eq!(parse("postgres://u@h/d?connect_timeout=0").connect_timeout, CONNECT_TIMEOUT);
    assert_eq!(parse("postgres://u@h/d?connect_timeout=3").connect_timeout, Duration::from_secs(3));
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text: String) {
        let _ = PgUrl::parse(&text);
        let _ = PgUrl::parse(&format!("postgres://{text}"));
        let _ = PgUrl::parse(&format!("host={text}"));
    }

    #[test]
    fn any_password_survives_encoding(password in "[^\0]{1,20}") {
        let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let url = parse(&format!("postgres://u:{encoded}@h/d"));
        prop_assert_eq!(url.password(), Some(Secret::new(password.clone())));
        let quoted = password.replace('\\', r"\\").replace('\'', r"\'");
        let pairs = parse(&format!("host=h user=u password='{quoted}'"));
        prop_assert_eq!(pairs.password(), Some(Secret::new(password)));
    }
}
