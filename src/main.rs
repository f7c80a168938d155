//! The `ingestd` program. See the library's documentation for how it works.

fn main() -> std::process::ExitCode {
    ingestd::cli::main()
}
