//! The program `beamlog`.

fn main() -> std::process::ExitCode {
    beamlog::cli::run()
}
