//! The limits: what the bare device and the bare loopback do, measured in the same run.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::figures::Latencies;

/// A preallocated file with written blocks, as a segment is.
fn preallocated(folder: &Path, bytes: u64) -> io::Result<File> {
    let file = File::options().create_new(true).read(true).write(true).open(folder.join("preallocated"))?;
    let zeros = vec![0u8; 1024 * 1024];
    let mut at = 0;
    while at < bytes {
        file.write_all_at(&zeros, at)?;
        at += zeros.len() as u64;
    }
    file.sync_all()?;
    Ok(file)
}

/// One positioned write of `bytes` and one fdatasync at a time, at growing offsets of a preallocated file.
pub fn sync_latencies(folder: &Path, bytes: usize, duration: Duration) -> io::Result<Latencies> {
    const FILE_BYTES: u64 = 16 * 1024 * 1024;
    let file = preallocated(folder, FILE_BYTES)?;
    let frame = vec![0x5a; bytes];
    let mut latencies = Latencies::default();
    let start = Instant::now();
    let mut at = 0;
    while start.elapsed() < duration {
        let before = Instant::now();
        file.write_all_at(&frame, at)?;
        file.sync_data()?;
        latencies.record(before.elapsed());
        at += bytes as u64;
        if at + bytes as u64 > FILE_BYTES {
            at = 0;
        }
    }
    Ok(latencies)
}

/// One request and one answer of these sizes over a loopback connection, one at a time.
pub fn loopback_latencies(request: usize, answer: usize, duration: Duration) -> io::Result<Latencies> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut client = TcpStream::connect(listener.local_addr()?)?;
    client.set_nodelay(true)?;
    let (mut server, _) = listener.accept()?;
    server.set_nodelay(true)?;
    thread::scope(|scope| {
        let echo = scope.spawn(move || {
            let (mut asked, answered) = (vec![0; request], vec![1; answer]);
            while server.read_exact(&mut asked).is_ok() {
                server.write_all(&answered)?;
            }
            Ok::<_, io::Error>(())
        });
        let mut latencies = Latencies::default();
        let (asked, mut answered) = (vec![1; request], vec![0; answer]);
        let start = Instant::now();
        while start.elapsed() < duration {
            let before = Instant::now();
            client.write_all(&asked)?;
            client.read_exact(&mut answered)?;
            latencies.record(before.elapsed());
        }
        drop(client);
        echo.join().expect("the echo thread does not panic")?;
        Ok(latencies)
    })
}

/// What a log can do at best: records laid behind each other with a checksum each, one write and one
/// fdatasync a batch, into preallocated segments. Gives records per second and the latency of a batch.
pub fn segment_loop(
    folder: &Path,
    record_bytes: usize,
    batch: usize,
    duration: Duration,
) -> io::Result<(f64, Latencies)> {
    const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
    let file = preallocated(folder, SEGMENT_BYTES)?;
    let payload = vec![0x5a_u8; record_bytes];
    let mut frame = Vec::with_capacity(batch * (record_bytes + 8));
    let mut latencies = Latencies::default();
    let (mut records, mut at) = (0u64, 0u64);
    let start = Instant::now();
    while start.elapsed() < duration {
        let before = Instant::now();
        frame.clear();
        for _ in 0..batch {
            frame.extend_from_slice(&u32::try_from(record_bytes).unwrap_or(u32::MAX).to_le_bytes());
            frame.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
            frame.extend_from_slice(&payload);
        }
        if at + frame.len() as u64 > SEGMENT_BYTES {
            // The next segment: as if another preallocated file were at hand.
            at = 0;
        }
        file.write_all_at(&frame, at)?;
        file.sync_data()?;
        at += frame.len() as u64;
        records += batch as u64;
        latencies.record(before.elapsed());
    }
    Ok((records as f64 / start.elapsed().as_secs_f64(), latencies))
}
