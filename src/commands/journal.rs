//! `tailwater journal ls`: what `replay` and `tail` can read.

use std::io;

use serde_json::json;

use super::{columns, load_config, say, say_error, say_raw};
use crate::cli::{Cli, Exit, Journal, JournalVerb};
use crate::config::Config;
use crate::diagnostic::chain;
use crate::journal::{JournalError, SegmentInfo, list};
use crate::telemetry::human::bytes;
use crate::telemetry::time::format_utc;

pub fn run(cli: &Cli, args: &Journal) -> Exit {
    let JournalVerb::Ls { source, json } = &args.verb;
    let config = match load_config(cli) {
        Ok(config) => config,
        Err(exit) => return exit,
    };
    let listed = match list_all(&config, source.as_deref()) {
        Ok(listed) => listed,
        Err(exit) => return exit,
    };
    if *json {
        let all: Vec<_> =
            listed.iter().flat_map(|(source, segments)| segments.iter().map(move |one| as_json(source, one))).collect();
        say(&serde_json::to_string_pretty(&all).expect("names and numbers"));
    } else {
        say_raw(table(&listed).as_bytes());
    }
    Exit::Done
}

type Listed<'a> = Vec<(&'a str, Vec<SegmentInfo>)>;

fn list_all<'a>(config: &'a Config, only: Option<&str>) -> Result<Listed<'a>, Exit> {
    if let Some(name) = only
        && !config.sources.contains_key(name)
    {
        return Err(super::unknown_source(config, name));
    }
    let mut listed = Vec::new();
    for name in config.sources.keys().filter(|name| only.is_none_or(|only| only == *name)) {
        match list(&config.data_dir.join(name)) {
            Ok(segments) => listed.push((name.as_str(), segments)),
            // No daemon has run yet.
            Err(JournalError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                listed.push((name, Vec::new()));
            }
            Err(error) => {
                say_error(&format!("error: journal of source \"{name}\": {}", chain(&error)));
                return Err(Exit::Failed);
            }
        }
    }
    Ok(listed)
}

fn as_json(source: &str, segment: &SegmentInfo) -> serde_json::Value {
    json!({
        "source": source,
        "file": segment.file,
        "first": segment.first,
        "end": segment.end,
        "bytes": segment.bytes,
        "frame_bytes": segment.frame_bytes,
        "compressed": segment.compressed,
        "continues": segment.continues,
        "opened_at": format_utc(segment.opened_at),
        "written_at": format_utc(segment.written_at),
        "unreadable_at": segment.unreadable_at,
    })
}

fn table(listed: &Listed<'_>) -> String {
    let mut rows =
        vec![["SOURCE", "FIRST", "END", "SIZE", "FRAMES", "OPENED", "WRITTEN", ""].map(str::to_owned).to_vec()];
    let mut ends = String::new();
    for (source, segments) in listed {
        if segments.is_empty() {
            ends.push_str(&format!("{source}: the journal is empty\n"));
        }
        for (place, segment) in segments.iter().enumerate() {
            rows.push(row(source, segment, place));
        }
        // Nothing can be read over a gap into the present.
        if let (Some(first), Some(last)) = (segments.iter().rfind(|one| !one.continues), segments.last()) {
            let size: u64 = segments.iter().map(|segment| segment.bytes).sum();
            ends.push_str(&format!("{source}: holds {} to {} in {}\n", first.first, last.end, bytes(size)));
        }
    }
    if rows.len() == 1 { ends } else { format!("{}\n{ends}", columns(&rows)) }
}

fn row(source: &str, segment: &SegmentInfo, place: usize) -> Vec<String> {
    let mut notes = Vec::new();
    if segment.compressed {
        notes.push("compressed".to_owned());
    }
    if place > 0 && !segment.continues {
        notes.push("behind a gap".to_owned());
    }
    if let Some(at) = segment.unreadable_at {
        notes.push(format!("unreadable from byte {at}"));
    }
    vec![
        source.to_owned(),
        segment.first.to_string(),
        segment.end.to_string(),
        bytes(segment.bytes),
        bytes(segment.frame_bytes),
        to_the_second(segment.opened_at),
        to_the_second(segment.written_at),
        notes.join(", "),
    ]
}

fn to_the_second(at: crate::checkpoint::UnixMicros) -> String {
    format_utc(crate::checkpoint::UnixMicros(at.0 - at.0.rem_euclid(1_000_000)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::UnixMicros;
    use crate::lsn::Lsn;

    fn segment(first: u64, end: u64, continues: bool) -> SegmentInfo {
        SegmentInfo {
            file: format!("{first:016X}.seg").into(),
            first: Lsn(first),
            end: Lsn(end),
            bytes: 1_234_567,
            frame_bytes: 5_000_000,
            compressed: continues,
            continues,
            opened_at: UnixMicros(1_772_357_400_250_000),
            written_at: UnixMicros(1_772_357_401_250_000),
            unreadable_at: None,
        }
    }

    #[test]
    fn sizes_times_and_gaps_stand_in_the_list() {
        let listed = vec![("lms", vec![segment(16, 32, false), segment(64, 80, false), segment(80, 96, true)])];
        let text = table(&listed);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], "lms     0/10   0/20  1.2 MB  5.0 MB  2026-03-01T09:30:00Z  2026-03-01T09:30:01Z",);
        assert!(lines[2].ends_with("behind a gap"), "{text}");
        assert!(lines[3].ends_with("compressed"), "{text}");
        assert_eq!(lines[5], "lms: holds 0/40 to 0/60 in 3.7 MB");
    }

    #[test]
    fn empty_journal_says_so() {
        assert_eq!(table(&vec![("lms", Vec::new())]), "lms: the journal is empty\n");
    }
}
