//! `tailwater demo`, to its end: what a first look shows.

use anyhow::{Result, ensure};

use crate::support::daemon::Home;

#[tokio::test]
async fn demo_ends_with_equal_databases_and_leaves_nothing_behind() -> Result<()> {
    let home = Home::new("demo", "", &[])?;
    let told = home.must(&["demo", "--seconds", "3"])?;
    for line in ["in ClickHouse", "in clickhouse half within", "views       equal", "All databases agree"] {
        ensure!(told.contains(line), "no \"{line}\" in {told}");
    }
    ensure!(told.matches("same content").count() == 6 && !told.contains("DIFFER"), "{told}");
    let files = told.lines().find_map(|line| line.strip_prefix("files       all in "));
    ensure!(files.is_some_and(|files| !std::path::Path::new(files).exists()), "{files:?} is still there");
    Ok(())
}
