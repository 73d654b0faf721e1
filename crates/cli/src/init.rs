//! `cargo xtask init`.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dialoguer::Input;
use kiln_aws::Aws;
use kiln_config::config::AppId;
use kiln_config::model::{Organization, Region};
use kiln_github::AppKey;
use kiln_operations::init::{self, Answers, NetworkAnswer};
use kiln_operations::ports::{Account as _, Egress, Identity as _};
use kiln_operations::{Code, Error};
use url::Url;

use crate::register::{Registered, register};
use crate::ui::{Failure, Ui};
use crate::{cloud, rotate_key};

/// Write what your repository needs: kiln.toml, its schema, the workflows.
///
/// Asks on a terminal for what no flag gives, and checks each answer when it is given: the credentials and the region in
/// AWS, the subnets and their route to the internet. Prints the form that registers the GitHub App with its one permission,
/// and what to do next. No file that is there is replaced without --force.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask init
  cargo xtask init --organization acme --region eu-central-1 --client-id Iv23liEXAMPLE0000000 --network create-vpc
  cargo xtask init --register                   # the App by a form in your browser, its key into AWS
  cargo xtask init --workflows --force          # after an upgrade: the workflows and the schema of this version
  cargo xtask init --network vpc-0123456789abcdef0:subnet-0123456789abcdef0,subnet-0123456789abcdef1")]
pub struct Args {
    /// The organization's login at GitHub.
    #[arg(long, value_name = "LOGIN", value_parser = init::organization)]
    organization: Option<Organization>,

    /// The AWS region.
    #[arg(long, value_name = "REGION")]
    region: Option<Region>,

    /// The GitHub App's client id, at the top of its settings, or its number.
    #[arg(long, value_name = "ID", value_parser = init::app)]
    client_id: Option<AppId>,

    /// Register the App in a browser, by a form that is filled in: its ids and its key come back from GitHub. The key goes into
    /// AWS as `rotate-key` does it, and never into a file.
    #[arg(long, conflicts_with_all = ["client_id", "installation_id", "offline", "workflows"])]
    register: bool,

    /// The number at the end of the installation's address; saves each boot a request.
    #[arg(long, value_name = "NUMBER")]
    installation_id: Option<u64>,

    /// `create-vpc`, or subnets that exist: `VPC:SUBNET,SUBNET`.
    #[arg(long, value_name = "NETWORK")]
    network: Option<NetworkAnswer>,

    /// GitHub Enterprise Server's address; github.com when absent.
    #[arg(long, value_name = "URL", value_parser = init::github_url)]
    github_url: Option<Url>,

    /// Replace files that are there.
    #[arg(long)]
    force: bool,

    /// Write kiln.toml and its schema only.
    #[arg(long, conflicts_with = "workflows")]
    no_workflows: bool,

    /// Write all but kiln.toml, and ask nothing.
    #[arg(long)]
    workflows: bool,

    /// Check nothing in AWS.
    #[arg(long)]
    offline: bool,
}

pub(crate) async fn run(args: &Args, path: &Path, ui: &Ui) -> Result<(), Failure> {
    let files = files(args, path);
    refuse_to_replace(args, path, &files)?;
    ui.clear();
    if args.workflows {
        write(&files, ui)?;
        return Ok(());
    }
    let mut typed = Vec::new();
    let (answers, text) = match Box::pin(answers(args, ui, &mut typed)).await {
        Ok(answered) => answered,
        Err(failure) => {
            if !typed.is_empty() {
                ui.talk(&format!("your answers so far: cargo xtask init {}", typed.join(" ")));
            }
            return Err(failure);
        }
    };
    let (answers, text, key) = if args.register { registered(answers, ui).await? } else { (answers, text, None) };
    write(&[(path.to_owned(), text)], ui)?;
    write(&files, ui)?;
    if let Some(key) = key {
        store(key, path, ui).await?;
    }
    if !args.no_workflows && path.parent().is_some_and(|folder| !is_top(folder)) {
        ui.warn("GitHub reads .github at the top of a repository only: move it there, or run this there");
    }
    ui.talk(&format!("next:\n{NEXT}\n{}", subject(&answers.organization)));
    Ok(())
}

/// The same answers with the App that was registered for them.
async fn registered(answers: Answers, ui: &Ui) -> Result<(Answers, String, Option<Arc<AppKey>>), Failure> {
    let github = answers.github_url.clone().unwrap_or_else(|| Url::parse(GITHUB).expect("the address is a constant"));
    let Registered { client_id, installation, key } = register(&answers.organization, &github, ui).await?;
    let answers = Answers { app: AppId::Client(client_id), installation_id: Some(installation), ..answers };
    let text = init::kiln_toml(&answers)?;
    Ok((answers, text, Some(key)))
}

/// Puts the App's first key where the fleets look for it.
async fn store(key: Arc<AppKey>, config: &Path, ui: &Ui) -> Result<(), Failure> {
    let config = cloud::look_at_config(config)?;
    Box::pin(rotate_key::install(key, &config, ui)).await.inspect_err(|_| {
        ui.warn(
            "the App is registered and kiln.toml is written, but its key was not stored: generate another one in the App's \
             settings, and run `cargo xtask rotate-key --pem FILE`",
        );
    })
}

/// Asks for what no flag gives; `typed` are the answers as flags. The text is that of kiln.toml.
async fn answers(args: &Args, ui: &Ui, typed: &mut Vec<String>) -> Result<(Answers, String), Failure> {
    let github_url = args.github_url.clone().unwrap_or_else(|| Url::parse(GITHUB).expect("the address is a constant"));
    let ask = Asker { flag: "--organization", question: "GitHub organization", default: None };
    let organization = ask.for_it(args.organization.as_ref(), init::organization, typed)?;
    if args.client_id.is_none() && !args.register {
        ui.talk(&format!(
            "An owner of the organization registers the App with this form, in which its one permission is filled in. \
             Install the App, and copy its client id. `--register` does all of it in a browser.\n  {}",
            init::app_form(&github_url, organization.as_str())
        ));
    }
    let ask = Asker { flag: "--client-id", question: "Client id of the App", default: None };
    let app = match args.register {
        // Until it is registered, which is the last step: what was answered before it is good.
        true => AppId::App(1),
        false => ask.for_it(args.client_id.as_ref(), |text| own_app(&organization, text), typed)?,
    };
    // One that a flag gives, too.
    init::refuse_placeholders(&organization, &app)?;
    let region = region(args, typed)?;
    let ask = Asker {
        flag: "--network",
        question: "Network (create-vpc, or VPC:SUBNET,SUBNET)",
        default: Some("create-vpc".to_owned()),
    };
    let mut given = args.network.as_ref();
    loop {
        let answers = Answers {
            organization: organization.clone(),
            region: region.clone(),
            app: app.clone(),
            installation_id: args.installation_id,
            network: ask.for_it(given.take(), |text| text.parse::<NetworkAnswer>(), &mut Vec::new())?,
            github_url: args.github_url.clone(),
        };
        let text = init::kiln_toml(&answers)?;
        let checked = if args.offline { Ok(()) } else { check(&answers, ui).await };
        match checked {
            Ok(()) => return Ok((answers, text)),
            // The other answers are good: only this one is asked for once more.
            Err(Failure::Release(error)) if args.network.is_none() && std::io::stdin().is_terminal() => {
                ui.warn(&error.to_string());
            }
            Err(failure) => return Err(failure),
        }
    }
}

/// An App's id that is not the example's.
fn own_app(organization: &Organization, text: &str) -> Result<AppId, String> {
    let app = init::app(text)?;
    init::refuse_placeholders(organization, &app).map_err(|error| error.to_string())?;
    Ok(app)
}

/// What is written next to kiln.toml.
fn files(args: &Args, config: &Path) -> Vec<(PathBuf, String)> {
    let folder = config.parent().unwrap_or(Path::new(""));
    let wanted = init::FILES.iter().filter(|(name, _)| !args.no_workflows || !name.starts_with(".github/"));
    wanted.map(|(name, text)| (folder.join(name), (*text).to_owned())).collect()
}

/// Whether a folder is where GitHub looks for workflows, as far as that can be known.
fn is_top(folder: &Path) -> bool {
    let Ok(folder) = std::path::absolute(folder) else { return true };
    folder.join(".git").exists() || !folder.ancestors().any(|above| above.join(".git").exists())
}

fn write(files: &[(PathBuf, String)], ui: &Ui) -> Result<(), Error> {
    for (path, text) in files {
        let unwritable = |error: std::io::Error| {
            Error::new(Code::FileUnwritable, format!("can't write `{}`", path.display())).caused_by(error)
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(unwritable)?;
        }
        std::fs::write(path, text).map_err(unwritable)?;
        ui.talk(&format!("wrote {}", path.display()));
    }
    Ok(())
}

const GITHUB: &str = "https://github.com";

/// The steps of README and the handbook, in their order.
const NEXT: &str = "  \
  cargo xtask doctor                   check every precondition
  cargo xtask rotate-key --pem FILE    install the App's key (its settings: \"Generate a private key\")
  cargo xtask ami                      bake the image
  cargo xtask deploy                   start the runners
";

/// What a workflow of the organization's says of itself to AWS.
///
/// Source: <https://github.com/aws-actions/configure-aws-credentials/issues/1888>
fn subject(organization: &Organization) -> String {
    format!(
        "pipelines: a job in environment ENV of repository REPO has the OIDC subject\n  \
         repo:{organization}/REPO:environment:ENV\n\
         or, where the repository was created or renamed since 2026-07-15,\n  \
         repo:{organization}@OWNER_ID/REPO@REPO_ID:environment:ENV\n\
         with the ids of: gh api repos/{organization}/REPO --jq '.owner.id, .id'"
    )
}

fn region(args: &Args, typed: &mut Vec<String>) -> Result<Region, Error> {
    let default = std::env::var("AWS_REGION").ok().filter(|region| !region.is_empty());
    let ask = Asker { flag: "--region", question: "AWS region", default };
    let region = ask.for_it(args.region.as_ref(), init::region, typed)?;
    if args.offline || args.force {
        return Ok(region);
    }
    init::region(region.as_str()).map_err(|what| {
        Error::new(Code::AnswerInvalid, what).hint("is it spelt right? With --offline it is not checked")
    })
}

/// Nothing is written where one file would have to be replaced. One that is as it would be written may stay.
fn refuse_to_replace(args: &Args, config: &Path, files: &[(PathBuf, String)]) -> Result<(), Error> {
    if args.force {
        return Ok(());
    }
    let differs = |path: &Path, text: &str| {
        std::fs::symlink_metadata(path).is_ok() && std::fs::read(path).ok().as_deref() != Some(text.as_bytes())
    };
    let config = Some(config).filter(|config| !args.workflows && std::fs::symlink_metadata(config).is_ok());
    let other = files.iter().find(|(path, text)| differs(path, text)).map(|(path, _)| path.as_path());
    match config.or(other) {
        Some(path) => Err(Error::new(Code::FileExists, format!("`{}` is there already", path.display()))
            .hint("edit it; or replace it with --force; or write to another folder with --config FOLDER/kiln.toml")),
        None => Ok(()),
    }
}

/// Asks for one thing.
struct Asker {
    flag: &'static str,
    question: &'static str,
    default: Option<String>,
}

impl Asker {
    /// A flag's value, or an answer on the terminal, checked when it is given.
    fn for_it<T: Clone>(
        &self,
        given: Option<&T>,
        read: impl Fn(&str) -> Result<T, String>,
        typed: &mut Vec<String>,
    ) -> Result<T, Error> {
        let Self { flag, question, default } = self;
        if let Some(given) = given {
            return Ok(given.clone());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Error::new(Code::NoTerminal, format!("there is no terminal to ask: {question}"))
                .hint(format!("give {flag}; `cargo xtask init --help` has examples")));
        }
        let mut input = Input::<String>::new().with_prompt(*question);
        if let Some(default) = default {
            input = input.default(default.clone());
        }
        let answer = input.validate_with(|text: &String| read(text).map(drop)).interact_text();
        let answer = answer.map_err(|error| {
            Error::new(Code::NoTerminal, "the terminal gave no answer").caused_by(std::io::Error::other(error))
        })?;
        let answer = answer.trim();
        typed.extend([(*flag).to_owned(), answer.to_owned()]);
        read(answer).map_err(|what| Error::new(Code::AnswerInvalid, what))
    }
}

/// Checks what can be checked before there is a key.
async fn check(answers: &Answers, ui: &Ui) -> Result<(), Failure> {
    let aws = Aws::connect(&answers.region).await;
    match aws.caller().await {
        Ok(caller) => ui.talk(&format!("AWS account {} in {}, as {}", caller.account, answers.region, caller.arn)),
        Err(error) => {
            let error = Error::from(error);
            ui.warn(&format!("could not ask AWS ({error}): account and subnets were not checked"));
            return Ok(());
        }
    }
    let NetworkAnswer::Subnets { vpc, subnets } = &answers.network else { return Ok(()) };
    let found = aws.subnets(subnets).await.map_err(Error::from)?;
    for id in subnets {
        let refused = match found.iter().find(|subnet| subnet.id == *id) {
            None => Some(format!("there is no subnet {id} in {}", answers.region)),
            Some(subnet) if subnet.vpc != *vpc => Some(format!("subnet {id} is in {}, not in {vpc}", subnet.vpc)),
            Some(subnet) if matches!(subnet.way_out, Egress::None | Egress::Gateway { public: false }) => {
                Some(format!("instances in subnet {id} have no route to the internet"))
            }
            Some(_) => None,
        };
        if let Some(what) = refused {
            return Err(Error::new(Code::SubnetNotUsable, what)
                .hint("name other subnets in --network, or `create-vpc`; --offline does not check them")
                .into());
        }
    }
    Ok(())
}
