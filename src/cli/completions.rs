//! `recurve completions`.

use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};
use recurve::Result;

/// Arguments of `recurve completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    generate(args.shell, &mut super::Cli::command(), "recurve", &mut script);
    super::say(String::from_utf8_lossy(&script).trim_end())
}
