//! The list of targets.

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Well-formed inputs to begin with: what `beamlog-fuzz seeds` writes into the corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Byte strings that mutations put in.
    pub words: &'static [&'static [u8]],
}

macro_rules! targets {
    ($($name:ident),+ $(,)?) => {
        $(pub mod $name;)+

        /// Every target there is.
        pub const TARGETS: &[Target] = &[$(Target {
            name: stringify!($name),
            run: $name::run,
            seeds: $name::seeds,
            words: $name::WORDS,
        }),+];
    };
}

targets! {
    api_request,
    catalogue,
    cell_envelope,
    cell_plan,
    client_lines,
    decide_request,
    edge_token,
    envelope,
    frame,
    gateway_body,
    headers,
    identity,
    interest,
    link_delivery,
    link_headers,
    link_table,
    log_entry,
    log_files,
    mesh_frame,
    moving,
    peer_frames,
    peer_hello,
    policy_document,
    raft_rpc,
    segment_open,
    subject_filter,
    task_events,
    task_words,
    vote_file,
    worker_messages,
}
