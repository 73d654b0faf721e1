//! `cargo xtask explain`.

use kiln_operations::Code;
use serde_json::json;

use crate::ui::Ui;

/// Explain a failure by its name, the one in `error[NAME]`; without a name, all of them.
///
/// Without a name it prints docs/errors.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask explain image-not-recorded
  cargo xtask explain --json

Results: codes")]
pub struct Args {
    /// The name.
    #[arg(value_name = "NAME")]
    code: Option<Code>,
}

const TITLE: &str = "\
# Error codes

Every failure of a command has a stable name. The name is in `error[NAME]`, in the title of a workflow annotation, in the step's
output `error-code`, and in `error.code` of the `--json` document. Two names are not listed below: `usage` (exit code 2) is a
command line that can't be parsed, and `interrupted` (130) is Ctrl-C or a cancelled pipeline. `cargo xtask explain` prints this
page.
";

pub(crate) fn run(args: &Args, ui: &Ui) {
    let codes = args.code.as_ref().map_or(Code::ALL, std::slice::from_ref);
    let text = match args.code {
        Some(code) => {
            let exit = code.kind().exit_code();
            format!("{code} (exit code {exit})\n\n{}\n\n{}", code.meaning(), code.remedy())
        }
        // The committed page is for whoever installed `kiln`.
        None => page().replace("cargo xtask ", "kiln "),
    };
    ui.data(&text);
    let rows = codes.iter().map(|code| {
        json!({
            "name": code.name(),
            "exit-code": code.kind().exit_code(),
            "meaning": code.meaning(),
            "remedy": code.remedy(),
        })
    });
    ui.record("codes", rows.collect::<Vec<_>>());
}

fn page() -> String {
    let mut text = TITLE.to_owned();
    for code in Code::ALL {
        let exit = code.kind().exit_code();
        text.push_str(&format!(
            "\n## {code}\n\n{} Exit code {exit}.\n\n*What to do:* {}\n",
            code.meaning(),
            code.remedy()
        ));
    }
    text.trim_end().to_owned()
}
