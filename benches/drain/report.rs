//! The tables on standard output: medians, with least and most in parentheses.

use crate::backlog::Written;
use crate::clickhouse_copy::ClickHouseCopies;
use crate::drain::{Drains, Measure, Way};
use crate::kafka_copy::KafkaCopies;
use crate::latency::Latencies;
use crate::servers::Transport;
use crate::snapshot::Copies;

/// Median, least and most.
pub fn spread(mut values: Vec<f64>) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    let middle = values.len() / 2;
    let median =
        if values.len().is_multiple_of(2) { (at(middle.wrapping_sub(1)) + at(middle)) / 2.0 } else { at(middle) };
    (median, at(0), at(values.len().wrapping_sub(1)))
}

fn median(measures: &[Measure], of: impl Fn(&Measure) -> f64) -> f64 {
    spread(measures.iter().map(of).collect()).0
}

pub fn machine(scale: f64) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split(':').nth(1));
    println!("{cores} cores, {}; PostgreSQL 15, fsync off; scale {scale}", model.unwrap_or("unknown").trim());
    println!("Medians of all rounds, least and most in parentheses. CPU in seconds.");
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Native => "native logical replication",
        Way::Tailwater => "tailwater",
        Way::ClickHouse => "tailwater into ClickHouse",
        Way::Kafka => "tailwater into Kafka",
        Way::Recvlogical => "reading: pg_recvlogical",
        Way::Wire => "reading: tailwater's connection",
        Way::Journal => "reading: into the journal",
    }
}

fn via(transport: Transport) -> &'static str {
    match transport {
        Transport::Socket => "over unix sockets",
        Transport::Tcp => "over TCP, sslmode=disable",
    }
}

pub fn drains(written: &Written<'_>, transport: Transport, drains: &[Drains]) {
    let backlog = written.backlog;
    println!("\nBacklog {}: {}; {}", backlog.name, backlog.title, via(transport));
    println!(
        "{:<32}{:>22}{:>12}{:>8}{:>9}{:>9}{:>9}{:>11}{:>10}",
        "", "seconds", "changes/s", "MB/s", "source", "process", "sink", "µs/change", "peak MiB"
    );
    for drain in drains {
        let measures = &drain.measures;
        let (seconds, least, most) = spread(measures.iter().map(|measure| measure.seconds).collect());
        let own = median(measures, |measure| measure.own_cpu);
        let peak = median(measures, |measure| measure.peak_mib);
        println!(
            "{:<32}{:>22}{:>12.0}{:>8.1}{:>9.2}{:>9}{:>9}{:>11}{:>10}",
            name(drain.way),
            format!("{seconds:.2} ({least:.2}–{most:.2})"),
            backlog.changes as f64 / seconds,
            written.stream_bytes / seconds / 1e6,
            median(measures, |measure| measure.source_cpu),
            unless_zero(own, 2),
            unless_zero(median(measures, |measure| measure.sink_cpu), 2),
            unless_zero(own * 1e6 / backlog.changes as f64, 2),
            unless_zero(peak, 0),
        );
    }
    println!("bytes are those of the messages: {:.0} MB in all", written.stream_bytes / 1e6);
    for drain in drains.iter().filter(|drain| drain.way == Way::ClickHouse) {
        println!("ClickHouse {}", server_side(&drain.measures));
    }
    for drain in drains.iter().filter(|drain| drain.way == Way::Kafka) {
        println!("Kafka {}", broker_side(&drain.measures));
    }
    let seconds = |way: Way| {
        let found = drains.iter().find(|drain| drain.way == way);
        found.map_or(f64::NAN, |drain| median(&drain.measures, |measure| measure.seconds))
    };
    let clickhouse = seconds(Way::ClickHouse) / seconds(Way::Recvlogical);
    if clickhouse.is_finite() {
        println!("into ClickHouse / pg_recvlogical {clickhouse:.2} (aim 1.20)");
    }
    for (than, way) in [("pg_recvlogical", Way::Recvlogical), ("native", Way::Native)] {
        let kafka = seconds(Way::Kafka) / seconds(way);
        if kafka.is_finite() {
            println!("into Kafka / {than} {kafka:.2}");
        }
    }
    let own = seconds(Way::Tailwater);
    let reading = seconds(Way::Wire);
    // Of ways that were left out there is no ratio.
    let ratios =
        [("native", own / seconds(Way::Native), backlog.aims.0), ("reading alone", own / reading, backlog.aims.1)];
    for (than, ratio, aim) in ratios.into_iter().filter(|(_, ratio, _)| ratio.is_finite()) {
        println!("tailwater / {than} {ratio:.2} (aim {aim:.2})");
    }
}

/// What a ClickHouse server did meanwhile.
fn server_side(measures: &[Measure]) -> String {
    format!(
        "took {:.0} inserts, {:.1} a second, had {:.0} active parts at the end, peak {:.0} MiB",
        median(measures, |measure| measure.inserts),
        median(measures, |measure| measure.inserts / measure.seconds),
        median(measures, |measure| measure.parts),
        median(measures, |measure| measure.sink_peak_mib),
    )
}

/// What a Kafka broker got meanwhile.
fn broker_side(measures: &[Measure]) -> String {
    format!(
        "took {:.0} messages of {:.0} MB in keys and values, {:.1} MB/s; its logs grew by {:.0} MB; peak {:.0} MiB",
        median(measures, |measure| measure.messages),
        median(measures, |measure| measure.message_bytes / 1e6),
        median(measures, |measure| measure.message_bytes / measure.seconds / 1e6),
        median(measures, |measure| measure.log_bytes / 1e6),
        median(measures, |measure| measure.sink_peak_mib),
    )
}

fn unless_zero(value: f64, digits: usize) -> String {
    if value == 0.0 { "-".to_owned() } else { format!("{value:.digits$}") }
}

pub fn latencies(all: &[Latencies]) {
    println!("\nFrom just before the commit until a reader of the sink sees the row, in ms");
    println!(
        "{:<32}{:>8}{:>8}{:>8}{:>8}{:>9}{:>14}{:>9}{:>9}{:>9}",
        "", "p50", "p90", "p99", "most", "probes", "load, tx/s", "source", "process", "sink"
    );
    for one in all {
        println!(
            "{:<32}{:>8.1}{:>8.1}{:>8.1}{:>8.1}{:>9}{:>14.0}{:>9.2}{:>9}{:>9}",
            name(one.way),
            one.percentile(50),
            one.percentile(90),
            one.percentile(99),
            one.percentile(100),
            one.millis.len(),
            one.transactions_per_second,
            one.cpu.source_cpu,
            unless_zero(one.cpu.own_cpu, 2),
            unless_zero(one.cpu.sink_cpu, 2),
        );
    }
    println!("aim: p50 at most 5, p99 at most 25 at 1,000 transactions/s");
}

pub fn snapshot(copies: &Copies) {
    let rate =
        |measures: &[Measure]| spread(measures.iter().map(|measure| copies.rows as f64 / measure.seconds).collect());
    println!("\nSnapshot of {} rows of 10 columns, rows/s", copies.rows);
    let (own, least, most) = rate(&copies.tailwater);
    println!(
        "{:<32}{own:>12.0} ({least:.0}–{most:.0})   process {:.2} CPU s, peak {:.0} MiB",
        "tailwater, start to streaming",
        median(&copies.tailwater, |measure| measure.own_cpu),
        median(&copies.tailwater, |measure| measure.peak_mib),
    );
    let (pipe, least, most) = rate(&copies.pipe);
    println!("{:<32}{pipe:>12.0} ({least:.0}–{most:.0})", "psql COPY | psql COPY, binary");
    println!("tailwater / COPY | COPY {:.2} (aim 0.90)", own / pipe);
}

pub fn clickhouse_snapshot(copies: &ClickHouseCopies) {
    println!(
        "\nSnapshot of {} rows of 10 columns, {:.0} MB at the source, into ClickHouse; over TCP",
        copies.rows,
        copies.bytes / 1e6
    );
    println!(
        "{:<42}{:>22}{:>12}{:>8}{:>9}{:>9}{:>9}{:>10}",
        "", "seconds", "rows/s", "MB/s", "source", "process", "sink", "peak MiB"
    );
    let ways = [
        ("tailwater, start to streaming", &copies.tailwater),
        ("INSERT INTO … SELECT FROM postgresql(…)", &copies.table_function),
    ];
    for (name, measures) in ways {
        let (seconds, least, most) = spread(measures.iter().map(|measure| measure.seconds).collect());
        println!(
            "{name:<42}{:>22}{:>12.0}{:>8.1}{:>9.2}{:>9}{:>9.2}{:>10}",
            format!("{seconds:.2} ({least:.2}–{most:.2})"),
            copies.rows as f64 / seconds,
            copies.bytes / seconds / 1e6,
            median(measures, |measure| measure.source_cpu),
            unless_zero(median(measures, |measure| measure.own_cpu), 2),
            median(measures, |measure| measure.sink_cpu),
            unless_zero(median(measures, |measure| measure.peak_mib), 0),
        );
        println!("    ClickHouse {}", server_side(measures));
    }
    let seconds = |measures: &[Measure]| median(measures, |measure| measure.seconds);
    let ratio = seconds(&copies.table_function) / seconds(&copies.tailwater);
    println!("tailwater's rate / postgresql()'s {ratio:.2}");
}

pub fn kafka_snapshot(copies: &KafkaCopies) {
    println!(
        "\nSnapshot of {} rows of 10 columns, {:.0} MB at the source, into Kafka; over TCP",
        copies.rows,
        copies.bytes / 1e6
    );
    println!(
        "{:<42}{:>22}{:>12}{:>8}{:>9}{:>9}{:>9}{:>10}",
        "", "seconds", "rows/s", "MB/s", "source", "process", "sink", "peak MiB"
    );
    let ways =
        [("tailwater, start to streaming", &copies.tailwater), ("psql COPY > /dev/null, binary", &copies.reading)];
    for (name, measures) in ways {
        let (seconds, least, most) = spread(measures.iter().map(|measure| measure.seconds).collect());
        println!(
            "{name:<42}{:>22}{:>12.0}{:>8.1}{:>9.2}{:>9}{:>9}{:>10}",
            format!("{seconds:.2} ({least:.2}–{most:.2})"),
            copies.rows as f64 / seconds,
            copies.bytes / seconds / 1e6,
            median(measures, |measure| measure.source_cpu),
            unless_zero(median(measures, |measure| measure.own_cpu), 2),
            unless_zero(median(measures, |measure| measure.sink_cpu), 2),
            unless_zero(median(measures, |measure| measure.peak_mib), 0),
        );
    }
    println!("Kafka {}", broker_side(&copies.tailwater));
    let seconds = |measures: &[Measure]| median(measures, |measure| measure.seconds);
    println!("tailwater / reading alone {:.2}", seconds(&copies.tailwater) / seconds(&copies.reading));
}
