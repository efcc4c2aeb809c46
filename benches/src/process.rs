//! What the kernel knows of a process: CPU time, memory, bytes written, open files.

use std::fs;
use std::path::Path;
use std::time::Duration;

/// USER_HZ: what /proc counts CPU time in, on every Linux we run on.
const TICKS_PER_SECOND: u64 = 100;

/// Figures of one moment. Two of them bracket a measurement.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu: Duration,
    pub bytes_written: u64,
}

/// CPU time and bytes written so far; zeros when the process is gone.
#[must_use]
pub fn usage(pid: u32) -> Usage {
    let cpu = fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|stat| cpu_time(&stat));
    let written = field(&format!("/proc/{pid}/io"), "write_bytes:");
    Usage { cpu: cpu.unwrap_or_default(), bytes_written: written.unwrap_or(0) }
}

/// The highest resident memory so far, in KiB.
#[must_use]
pub fn peak_memory_kib(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/status"), "VmHWM:").unwrap_or(0)
}

/// Resident memory now, in KiB.
#[must_use]
pub fn memory_kib(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/status"), "VmRSS:").unwrap_or(0)
}

/// Resident memory now that is private to the process and not a file's, in KiB.
#[must_use]
pub fn anonymous_memory_kib(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/status"), "RssAnon:").unwrap_or(0)
}

/// How many files are below a folder, and how many bytes their blocks take.
#[must_use]
pub fn files_below(folder: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = fs::read_dir(folder) else { return (0, 0) };
    let mut found = (0, 0);
    for entry in entries.flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        if metadata.is_dir() {
            let (files, bytes) = files_below(&entry.path());
            found = (found.0 + files, found.1 + bytes);
        } else {
            found = (found.0 + 1, found.1 + metadata.blocks() * 512);
        }
    }
    found
}

fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// User and system time of `/proc/<pid>/stat`: fields 14 and 15, after a name that may hold spaces.
fn cpu_time(stat: &str) -> Option<Duration> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_after_a_name_with_spaces() {
        let stat = "7 (a b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 1 0 5";
        assert_eq!(cpu_time(stat), Some(Duration::from_secs(2)));
    }
}
