//! `cargo xtask completions`.

use clap::{Command, ValueEnum};
use clap_complete::Shell as Generator;

use crate::ui::Ui;

/// The word that the script defines: a shell completes a command's name, not cargo's first argument.
const NAME: &str = "kiln";

/// Print a shell's completions of `kiln`; in a checkout also `kiln` itself, short for the whole command.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  eval \"$(cargo xtask completions bash)\"
  cargo xtask completions zsh > ~/.kiln-completions.zsh
  cargo xtask completions fish > ~/.config/fish/conf.d/kiln.fish

Then `kiln de<TAB>` becomes `kiln deploy`. Results: script")]
pub struct Args {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Fish,
    Zsh,
}

pub(crate) fn run(args: &Args, mut commands: Command, ui: &Ui) {
    let (generator, function) = match args.shell {
        Shell::Bash => (Generator::Bash, "kiln() { cargo xtask \"$@\"; }\n"),
        Shell::Fish => (Generator::Fish, "function kiln; cargo xtask $argv; end\n"),
        Shell::Zsh => (Generator::Zsh, "kiln() { cargo xtask \"$@\"; }\n"),
    };
    // The binary `kiln` needs no function of its name.
    let function = if commands.get_name() == NAME { "" } else { function };
    let mut script = Vec::new();
    clap_complete::generate(generator, &mut commands, NAME, &mut script);
    // After the completions: zsh knows a file of them by its first line.
    let script = format!("{}{function}", String::from_utf8_lossy(&script));
    ui.data(script.trim_end());
    ui.record("script", script);
}
