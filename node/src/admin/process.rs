//! What the operating system says of this process. Zero where it says nothing.

use std::fs;
use std::time::Duration;

/// Memory that is really in use, in bytes.
pub(super) fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok())
        .unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Processor time used so far, by all threads.
pub(super) fn processor_time() -> Duration {
    let read = || {
        let text = fs::read_to_string("/proc/self/stat").ok()?;
        // The name in parentheses may contain spaces; utime and stime are the 14th and 15th field.
        let (_, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_whitespace().skip(11);
        let user: u64 = fields.next()?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        Some(user + system)
    };
    let ticks_per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_millis(read().unwrap_or(0) * 1000 / ticks_per_second)
}

pub(super) fn open_files() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
