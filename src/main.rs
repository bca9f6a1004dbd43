//! The `emberd` binary: arguments to an exit code, no logic.

fn main() -> std::process::ExitCode {
    emberd::daemon::cli::main()
}
