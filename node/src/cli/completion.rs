//! `completion`: scripts that complete commands and flags in a shell.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::arguments::Arguments;
use crate::cli::exit::Failure;
use crate::cli::output::raw;

pub(crate) fn completion(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "beamlog", &mut script);
    raw(&script)
}
