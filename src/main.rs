//! `multivio`: the API and everything an operator or developer types.

use std::process::ExitCode;

use clap::Parser;
use multivio::cli;

fn main() -> ExitCode {
    cli::main(cli::Multivio::parse())
}
