//! `tailwater.toml` and the environment: what comes out, and what the user reads when something is wrong.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tailwater::config::{Ack, Config, LogFormat, OnError, Secret, SinkEnd};
use tailwater::diagnostic::Findings;

const SMALLEST: &str = r#"
mappings = ["mappings/lessons.toml"]
[source.lms]
url = "postgres://tailwater@db.internal/lms"
[sink.warehouse]
kind = "postgres"
url  = "postgres://tailwater@dwh.internal/dwh"
"#;

fn parse(text: &str, environment: &[(&str, &str)]) -> Result<Config, Findings> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(Path::new("etc/tailwater.toml"), text, environment)
}

/// Each of `expected` is in what is drawn about `text`.
fn check(text: &str, environment: &[(&str, &str)], expected: &[&str]) {
    let findings = match parse(text, environment) {
        Ok(config) => config.warnings,
        Err(findings) => findings,
    };
    let rendered = findings.render(false);
    for part in expected {
        assert!(rendered.contains(part), "{text}\n-- expected --\n{part}\n-- found --\n{rendered}");
    }
}

fn with_source(line: &str) -> String {
    SMALLEST.replace("[sink.warehouse]", &format!("{line}\n[sink.warehouse]"))
}

#[test]
fn smallest_file_has_every_default() {
    let config = parse(SMALLEST, &[]).expect("well formed");
    assert_eq!(config.mappings, [PathBuf::from("etc/mappings/lessons.toml")]);
    assert_eq!(config.data_dir, PathBuf::from("etc/tailwater-data"));
    assert_eq!(config.http.listen, Some("127.0.0.1:9629".parse().expect("an address")));
    assert_eq!((config.log.format, config.log.level.as_str()), (LogFormat::Auto, "info"));
    let source = &config.sources["lms"];
    assert_eq!((source.slot.as_str(), source.publication.as_str()), ("tailwater_lms", "tailwater_lms"));
    assert_eq!((source.ack, source.heartbeat, source.snapshot_connections), (Ack::Sink, Duration::from_secs(10), 2));
    assert_eq!(source.journal.retention, Duration::from_secs(86_400));
    assert_eq!(source.journal.max_bytes, 10 << 30);
    let sink = &config.sinks["warehouse"];
    assert_eq!((sink.on_error, sink.batch_rows_max, sink.batch_bytes_max), (OnError::Quarantine, 100_000, 16 << 20));
    assert!(config.warnings.0.is_empty());
}

#[test]
fn settings_are_read_with_their_units() {
    let source = "ack = \"journal\"\nheartbeat = \"500ms\"\nslot = \"s1\"\nsnapshot_connections = 4\n\
                  [source.lms.journal]\nretention = \"1h30m\"\nmax_bytes = \"1GB\"\nsegment_bytes = 1048576";
    let text =
        format!("{}on_error = \"stop\"\n[http]\nlisten = \"off\"\n[log]\nformat = \"json\"", with_source(source));
    let config = parse(&text, &[]).unwrap_or_else(|findings| panic!("{}", findings.render(false)));
    let source = &config.sources["lms"];
    assert_eq!((source.ack, source.heartbeat), (Ack::Journal, Duration::from_millis(500)));
    assert_eq!((source.slot.as_str(), source.publication.as_str()), ("s1", "tailwater_lms"));
    assert_eq!(source.journal.retention, Duration::from_secs(5400));
    assert_eq!((source.journal.max_bytes, source.journal.segment_bytes), (1_000_000_000, 1 << 20));
    assert_eq!((config.http.listen, config.log.format), (None, LogFormat::Json));
    let sink = &config.sinks["warehouse"];
    assert_eq!(sink.on_error, OnError::Stop);
}

#[test]
fn a_clickhouse_sink_has_its_address_and_its_own_batch_sizes() {
    let text = format!(
        "{SMALLEST}[sink.ch]\nkind = \"clickhouse\"\nurl = \"https://w@ch.internal:8443\"\n\
         cluster = \"main\"\n"
    );
    let config = parse(&text, &[]).unwrap_or_else(|findings| panic!("{}", findings.render(false)));
    let sink = &config.sinks["ch"];
    let SinkEnd::ClickHouse(end) = &sink.end else { panic!("{sink:?}") };
    assert_eq!(end.url.expose(), "https://w@ch.internal:8443");
    assert_eq!((end.cluster.as_deref(), end.password.is_none()), (Some("main"), true));
    assert_eq!((sink.batch_rows_max, sink.batch_bytes_max), (500_000, 32 << 20));
}

#[test]
fn a_kafka_sink_may_have_a_schema_registry() {
    let kafka = "[sink.k]\nkind = \"kafka\"\nbrokers = \"h:1\"\n";
    let of = |registry: &str, environment: &[(&str, &str)]| {
        let config = parse(&format!("{SMALLEST}{kafka}{registry}"), environment);
        let config = config.unwrap_or_else(|findings| panic!("{}", findings.render(false)));
        let SinkEnd::Kafka(end) = &config.sinks["k"].end else { panic!("{:?}", config.sinks["k"]) };
        (end.registry.clone(), config.warnings.0.len())
    };
    assert_eq!(of("", &[]), (None, 0));
    let table =
        "schema_registry = { url = \"https://r:8081/v7\", user = \"u\", password = \"p\", ca_file = \"ca.pem\" }\n";
    let (registry, warnings) = of(table, &[("TAILWATER__SINK__K__SCHEMA_REGISTRY__USER", "other")]);
    let registry = registry.expect("it is configured");
    assert_eq!((registry.url.expose(), registry.user.as_deref()), ("https://r:8081/v7", Some("other")));
    assert_eq!(registry.password.as_ref().map(Secret::expose), Some("p"));
    assert_eq!((registry.ca_file, warnings), (Some(PathBuf::from("etc/ca.pem")), 0));
    assert_eq!(of("schema_registry = { url = \"http://u:p@r\" }\n", &[]).1, 1, "a password that travels is warned of");
}

#[test]
fn a_kafka_sink_tells_of_transactions_and_beats_if_it_is_asked_to() {
    let of = |lines: &str, environment: &[(&str, &str)]| {
        let config = parse(&format!("{SMALLEST}[sink.k]\nkind = \"kafka\"\nbrokers = \"h:1\"\n{lines}"), environment);
        let config = config.unwrap_or_else(|findings| panic!("{}", findings.render(false)));
        let SinkEnd::Kafka(end) = &config.sinks["k"].end else { panic!("{:?}", config.sinks["k"]) };
        (end.beside.topics("lms").collect::<Vec<_>>(), end.beside.heartbeats.as_ref().map(|beats| beats.every))
    };
    assert_eq!(of("", &[]), (vec![], None));
    let both = "provide_transaction_metadata = true\nheartbeat_interval = \"5s\"\n";
    let topics = |names: [&str; 2]| (names.map(str::to_owned).to_vec(), Some(Duration::from_secs(5)));
    assert_eq!(of(both, &[]), topics(["lms.transaction", "__debezium-heartbeat.lms"]));
    let named = "topic_transaction = \"tx\"\ntopic_heartbeat_prefix = \"beats\"\n";
    assert_eq!(of(&format!("{both}{named}"), &[]), topics(["lms.tx", "beats.lms"]));
    assert_eq!(of(named, &[]), (vec![], None), "a name alone asks for nothing");
    let environment = [("TAILWATER__SINK__K__PROVIDE_TRANSACTION_METADATA", "true")];
    assert_eq!(of("", &environment).0, ["lms.transaction"]);
}

#[test]
fn environment_overrides_the_file_and_adds_to_it() {
    let environment = [
        ("TAILWATER__SOURCE__LMS__URL", "postgres://u:p${x}@other/lms"),
        ("TAILWATER__SOURCE__LMS__SNAPSHOT_CONNECTIONS", "7"),
        ("TAILWATER__SOURCE__LMS__JOURNAL__MAX_BYTES", "20GiB"),
        ("TAILWATER__SOURCE__SECOND__URL", "postgres://u@second/lms"),
        ("TAILWATER__MAPPINGS", "a.toml, b.toml"),
        ("TAILWATER_CONFIG", "x"),
        ("PATH", "/bin"),
    ];
    let config = parse(SMALLEST, &environment).unwrap_or_else(|findings| panic!("{}", findings.render(false)));
    let source = &config.sources["lms"];
    assert_eq!(source.url.expose(), "postgres://u:p${x}@other/lms", "taken as it is");
    assert_eq!((source.snapshot_connections, source.journal.max_bytes), (7, 20 << 30));
    assert_eq!(config.sources["second"].slot, "tailwater_second");
    assert_eq!(config.mappings, [PathBuf::from("etc/a.toml"), PathBuf::from("etc/b.toml")]);
    assert!(config.warnings.0.is_empty());
}

#[test]
fn variables_stand_in_strings() {
    let text = with_source("password = \"${PW}\"\nslot = \"${SLOT:-fallback}\"");
    let config = parse(&text, &[("PW", "a\"b\\${PW}")]).expect("well formed");
    let source = &config.sources["lms"];
    assert_eq!(source.password.as_ref().map(|password| password.expose()), Some("a\"b\\${PW}"));
    assert_eq!(source.slot, "fallback");
    check(&text, &[], &["the environment variable \"PW\" is not set", "etc/tailwater.toml:5:12", "`${PW:-value}`"]);
}

#[test]
fn secrets_come_from_files_beside_the_configuration() {
    let directory = std::env::temp_dir().join(format!("tailwater-config-{}", std::process::id()));
    fs::create_dir_all(&directory).expect("create scratch directory");
    fs::write(directory.join("pw"), "s3cret\n").expect("write password");
    fs::write(directory.join("t.toml"), with_source("password_file = \"pw\"")).expect("write configuration");
    let config = Config::load(&directory.join("t.toml"), std::iter::empty());
    let config = config.unwrap_or_else(|findings| panic!("{}", findings.render(false)));
    let password = config.sources["lms"].password.clone().expect("a password");
    assert_eq!((password.expose(), format!("{password:?}").as_str()), ("s3cret", "***"));
    fs::remove_file(directory.join("pw")).expect("remove password");
    let findings = Config::load(&directory.join("t.toml"), std::iter::empty()).expect_err("no password file");
    assert!(findings.render(false).contains("pw\": no such file"), "{}", findings.render(false));
    fs::remove_dir_all(&directory).expect("remove scratch directory");
    let findings = Config::load(&directory.join("t.toml"), std::iter::empty()).expect_err("no file");
    assert!(findings.render(false).contains("t.toml\": no such file"), "{}", findings.render(false));
}

#[test]
fn every_slip_has_its_finding() {
    let cases: &[(&str, &[&str])] = &[
        ("slott = \"x\"", &["unknown key \"slott\" in [source.lms]", "5:1", "did you mean \"slot\"?"]),
        ("slot = \"Big\"", &["\"slot\" must have 1 to 63 of a-z, 0-9 and _", "5:8"]),
        ("slot = 5", &["\"slot\" must be a string", "this is an integer"]),
        ("ack = \"journl\"", &["\"ack\" must be one of \"sink\", \"journal\"", "did you mean \"journal\"?"]),
        ("heartbeat = \"10\"", &["\"heartbeat\" is not a duration", "\"500ms\""]),
        ("heartbeat = 10", &["\"heartbeat\" must be a string"]),
        ("snapshot_connections = 17", &["\"snapshot_connections\" must be a number from 1 to 16"]),
        ("snapshot_connections = \"2\"", &["\"snapshot_connections\" must be a number from 1 to 16"]),
        ("journal = { max_bytes = \"10gib\" }", &["\"max_bytes\" is not a size", "\"64MiB\""]),
        ("journal = { max_bytes = \"1MiB\" }", &["\"max_bytes\" must hold at least two segments"]),
        ("journal = { max_byte = 1 }", &["unknown key \"max_byte\" in [source.lms.journal]"]),
        ("password = \"x\"\npassword_file = \"y\"", &["both \"password\" and \"password_file\" are given"]),
        ("[source.Big]\nurl = \"postgres://h/d\"", &["the name of a source must have 1 to 63"]),
        ("[source.other]\nslot = \"x\"", &["\"other\" has no \"url\"", "5:9"]),
        ("[source.other]\nurl = \"mysql://h/d\"", &["\"url\" must begin with \"postgres://\""]),
        ("[sink.k]\nkind = \"kafka\"", &["\"k\" has no \"brokers\"", "add `brokers = "]),
        ("[sink.k]\nkind = \"kafka\"\nbrokers = \"h\"", &["\"brokers\" is not a list of host:port", "7:11"]),
        ("[sink.k]\nkind = \"kafka\"\nbrokers = \"h:1\"\nurl = \"x\"", &["unknown key \"url\" in [sink.k]"]),
        (
            "[sink.k]\nkind = \"kafka\"\nbrokers = \"h:1\"\nschema_registry = {}",
            &["\"schema_registry\" has no \"url\"", "add `url = \"https://registry:8081\"`"],
        ),
        (
            "[sink.k]\nkind = \"kafka\"\nbrokers = \"h:1\"\nschema_registry = { url = \"r:8081\", usr = \"u\" }",
            &["\"url\" must begin with \"http://\" or \"https://\"", "unknown key \"usr\" in \"schema_registry\""],
        ),
        (
            "[sink.k]\nkind = \"kafka\"\nbrokers = \"h:1\"\nprovide_transaction_metadata = 1\ntopic_transaction = \"a b\"",
            &["\"provide_transaction_metadata\" must be true or false", "\"topic_transaction\" is no name of a topic"],
        ),
        ("[sink.k]\nkind = \"postgre\"", &["\"kind\" must be one of", "did you mean \"postgres\"?"]),
        ("[sink.k]\nurl = \"postgres://h/d\"", &["[sink.k] has no \"kind\""]),
        ("[http]\nlisten = \"localhost\"", &["\"listen\" must be an IP address and a port"]),
        ("[log]\nlevels = \"x\"", &["unknown key \"levels\" in [log]", "did you mean \"level\"?"]),
        ("[sinks.x]\nkind = \"postgres\"", &["unknown key \"sinks\"", "did you mean \"sink\"?"]),
        ("[\"a.b[-1]\"]\nx = 1", &["unknown key \"a.b[-1]\" in the configuration"]),
    ];
    for (lines, expected) in cases {
        check(&with_source(lines), &[], expected);
    }
    check("", &[], &["names no mapping files", "no [source.NAME]", "no [sink.NAME]"]);
    check(&SMALLEST.replace("\"mappings/lessons.toml\"", ""), &[], &["\"mappings\" names no file"]);
    check(&format!("mask_salt = \"\"{SMALLEST}"), &[], &["the salt of masks is empty"]);
    check("a = [", &[], &["invalid TOML"]);
}

#[test]
fn environment_variables_are_named_in_findings() {
    let cases: &[(&str, &str, &str)] = &[
        ("TAILWATER__SOURCE__LMS__SLOTT", "x", "unknown key \"slott\" in [source.lms], from the environment variable"),
        ("TAILWATER__SOURCE__LMS__HEARTBEAT", "x", "variable \"TAILWATER__SOURCE__LMS__HEARTBEAT\""),
        (
            "TAILWATER__SOURCE__LMS",
            "x",
            "\"lms\" must be a table, from the environment variable \"TAILWATER__SOURCE__LMS\"",
        ),
        ("TAILWATER__SOURCE__LSM__SLOT", "x", "\"lsm\" has no \"url\", from the environment variable"),
        ("TAILWATER__SOURCE____URL", "x", "\"TAILWATER__SOURCE____URL\" does not name a setting"),
        ("TAILWATER__", "x", "\"TAILWATER__\" does not name a setting"),
        ("TAILWATER__SOURCE__A.B__URL", "x", "does not name a setting"),
    ];
    for (name, value, expected) in cases {
        check(SMALLEST, &[(name, value)], &[expected]);
    }
}

#[test]
fn all_findings_come_at_once() {
    let text = with_source("slott = 1\nack = 2\nheartbeat = \"x\"").replace("kind = \"postgres\"", "kind = \"file\"");
    let findings = parse(&text, &[]).expect_err("wrong");
    assert_eq!(findings.0.len(), 4, "{}", findings.render(false));
}

#[test]
fn inline_passwords_are_warned_of_where_they_travel() {
    let warned = |url: &str| {
        let config = parse(&SMALLEST.replace("postgres://tailwater@db.internal/lms", url), &[("PW", "x")]);
        !config.unwrap_or_else(|findings| panic!("{}", findings.render(false))).warnings.0.is_empty()
    };
    assert!(warned("postgres://u:pw@db.internal/lms"));
    assert!(warned("postgres://u@db.internal/lms?password=pw"));
    assert!(warned("postgres://u:pw@localhost.example.org/lms"));
    for url in [
        "postgres://u@db.internal/lms",
        "postgres://u:${PW}@db.internal/lms",
        "postgres://u:pw@localhost:5432/lms",
        "postgres://u:pw@127.0.0.1/lms",
        "postgresql://u:pw@[::1]:5432/lms",
        "postgres://u:pw@/lms?host=/run/postgresql",
        "postgres://u:pw@%2Frun%2Fpostgresql/lms",
    ] {
        assert!(!warned(url), "{url}");
    }
}

#[test]
fn no_secret_is_ever_drawn() {
    let secret = "s3cret";
    let texts = [
        with_source("password = \"s3cret\"\nslot = 1"),
        with_source("password = 's3cret\nslot = 1"),
        with_source("[source.b]\nurl = \"postgres://u:s3cret@h/d"),
        with_source("[source.b]\nurl = \"postgres://u:s3cret@h/d\""),
        with_source("[source.b]\nurl = \"mysql://u:s3cret@h/d\""),
        with_source("[source]\nb = { url = \"postgres://u:s3cret@h/d?a=@\", slott = 1 }"),
        with_source(
            "[sink.k]\nkind = \"kafka\"\nbrokers = \"h:1\"\n\
             schema_registry = { url = \"http://u:s3cret@r\", password = \"s3cret\", usr = \"u\" }",
        ),
        format!("{SMALLEST}\npasword = \"s3cret\"\n"),
        format!("mask_salt = [\"s3cret\"]{SMALLEST}"),
        format!("mask_salt = \"${{NONE:-s3cret}} ${{X}}\"{SMALLEST}"),
    ];
    for text in texts {
        let findings = match parse(&text, &[]) {
            Ok(config) => config.warnings,
            Err(findings) => findings,
        };
        let rendered = format!("{}{findings:?}", findings.render(false));
        assert!(!findings.0.is_empty(), "{text}");
        assert!(!rendered.contains(secret), "{rendered}");
    }
    let environment = [("TAILWATER__SOURCE__LMS__URL", "s3cret"), ("TAILWATER__SOURCE__LMS__HEARTBEAT", "s3cret")];
    let findings = parse(SMALLEST, &environment).expect_err("no address");
    assert!(!format!("{}{findings:?}", findings.render(false)).contains(secret));
    let config = parse(&with_source("password = \"s3cret\""), &[]).expect("well formed");
    assert!(!format!("{config:?}").contains(secret));
}

proptest::proptest! {
    #[test]
    fn arbitrary_input_never_panics(
        text in "(\\[source.a\\]\n|url = |\"postgres://|\\{|\\}|a|=|\"|\\$|\n|1|é|\\[|\\]|,|password|:|@|\\.|-)*",
        name in "TAILWATER__[A-Z_0-9\\[\\].-]*",
        value: String,
    ) {
        let _ = parse(&text, &[(&name, &value)]);
        let _ = parse(SMALLEST, &[(&name, &value)]);
    }
}
