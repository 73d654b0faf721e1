//! How a command speaks: the flags that every command has.

use clap::ColorChoice;

/// The flags.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Output options")]
pub struct OutputFlags {
    /// Print one JSON document on stdout instead: plan, result, error (docs/output.schema.json).
    #[arg(long, global = true)]
    pub json: bool,

    /// Say nothing but data, warnings, errors, and the plan of a dry run.
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    pub quiet: bool,

    /// Say each call to AWS and GitHub too: what, status, duration, request id; never a secret.
    #[arg(long, short, global = true)]
    pub verbose: bool,

    /// Colours: `auto` heeds NO_COLOR and whether stderr is a terminal.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t,
        hide_possible_values = true,
        value_name = "auto|always|never"
    )]
    pub color: ColorChoice,
}

impl OutputFlags {
    /// For what is said before the flags are known.
    pub fn guessed(arguments: &[std::ffi::OsString]) -> Self {
        let json = arguments.iter().take_while(|argument| *argument != "--").any(|argument| argument == "--json");
        Self { json, quiet: false, verbose: false, color: ColorChoice::Auto }
    }

    /// Makes the choice of colours everyone's.
    pub fn paint(&self) {
        let choice = match self.color {
            ColorChoice::Auto => anstream::ColorChoice::Auto,
            ColorChoice::Always => anstream::ColorChoice::Always,
            ColorChoice::Never => anstream::ColorChoice::Never,
        };
        choice.write_global();
    }
}
