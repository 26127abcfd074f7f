//! What this process costs, from `/proc/self`. Zeroes where there is no such file.

use std::fs;

/// `USER_HZ`, in which the kernel shows CPU times to programs: 100 on every architecture that Linux runs on today
/// (proc(5), `/proc/pid/stat`; the kernel's own HZ is converted).
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory and CPU of this process.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Usage {
    pub resident_bytes: u64,
    /// Highest `resident_bytes` so far.
    pub resident_bytes_peak: u64,
    /// User and system time of all threads since the start.
    pub cpu_seconds: f64,
}

impl Usage {
    /// As of now.
    pub fn of_self() -> Usage {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Usage::parse(&read("/proc/self/status"), &read("/proc/self/stat"))
    }

    fn parse(status: &str, stat: &str) -> Usage {
        let kilobytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        // The second field is the command in brackets and may hold spaces; times are fields 14 and 15, so the 12th and
        // 13th after it.
        let after_command = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: u64 =
            after_command.split_whitespace().skip(11).take(2).filter_map(|tick| tick.parse::<u64>().ok()).sum();
        Usage {
            resident_bytes: kilobytes("VmRSS:").unwrap_or(0).saturating_mul(1_024),
            resident_bytes_peak: kilobytes("VmHWM:").unwrap_or(0).saturating_mul(1_024),
            cpu_seconds: ticks as f64 / TICKS_PER_SECOND,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_proc_are_read() {
        let status = "Name:\ttail water\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let stat = "42 (tail) water) S 1 42 42 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 9 0 12345 1 2\n";
        let usage = Usage::parse(status, stat);
        assert_eq!(usage, Usage { resident_bytes: 1_048_576, resident_bytes_peak: 2_097_152, cpu_seconds: 2.0 });
        assert_eq!(Usage::parse("", "nonsense"), Usage::default());
    }

    #[test]
    fn this_process_uses_memory() {
        let usage = Usage::of_self();
        assert!(usage.resident_bytes > 0 && usage.resident_bytes_peak >= usage.resident_bytes, "{usage:?}");
    }
}
