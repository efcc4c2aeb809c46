//! Proof by system calls that an ack leaves only after its message was written and then synced (FAULTS
//! 4.7 calls it ack-after-sync): the server runs under strace, and the trace is judged afterwards.
//!
//! * [`mod@parse`]: lines of `strace -f -y` into calls with an order of begins and ends.
//! * [`mod@judge`]: the proof, and what was written beside the messages.

pub mod judge;
pub mod parse;

pub use judge::{Proof, judge};
pub use parse::{Call, TraceError, parse};

/// What strace must be told so that `parse` and `judge` can work: whole strings, paths of descriptors,
/// and every call that brings bytes to a file or a socket.
pub const STRACE: [&str; 8] = [
    "-D",
    "-f",
    "-y",
    "-s",
    "16777216",
    "-e",
    "trace=write,pwrite64,writev,pwritev,pwritev2,fdatasync,fsync,sendto,sendmsg,sendmmsg",
    "--signal=none",
];
