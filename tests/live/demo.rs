//! `tailwater demo`, to its end: what a first look shows.

use anyhow::{Result, ensure};

use crate::support::daemon::Home;

#[tokio::test]
async fn demo_ends_with_equal_databases_and_topics_and_leaves_nothing_behind() -> Result<()> {
    let home = Home::new("demo", "", &[])?;
    let told = home.must(&["demo", "--kafka", "--seconds", "3"])?;
    for line in [
        "in ClickHouse",
        "in clickhouse half within",
        "in events     half within",
        "views       equal",
        "messages/s",
        "All databases and topics agree",
    ] {
        ensure!(told.contains(line), "no \"{line}\" in {told}");
    }
    ensure!(told.matches("same content").count() == 6 && !told.contains("DIFFER"), "{told}");
    let shown = ["c", "u", "d", "-"].map(|op| format!("{op}  lms.public."));
    ensure!(shown.iter().any(|shown| told.contains(shown)), "no change in Kafka in {told}");
    ensure!(told.matches("same rows").count() == 4, "{told}");
    let files = told.lines().find_map(|line| line.strip_prefix("files       all in "));
    ensure!(files.is_some_and(|files| !std::path::Path::new(files).exists()), "{files:?} is still there");
    Ok(())
}

#[test]
fn demo_with_kafka_says_where_java_is_missing() -> Result<()> {
    let home = Home::new("demo-java", "", &[])?;
    let ended = home.command_with(&["demo", "--kafka"], &[("PATH", "/nowhere"), ("JAVA_HOME", "")])?;
    ensure!(!ended.status.success() && ended.stderr.contains("Kafka needs Java"), "{}{}", ended.stdout, ended.stderr);
    Ok(())
}
