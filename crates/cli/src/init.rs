//! `cargo xtask init`.

use std::io::IsTerminal as _;
use std::path::Path;

use dialoguer::Input;
use kiln_aws::Aws;
use kiln_config::config::AppId;
use kiln_config::model::{Organization, Region};
use kiln_operations::init::{self, Answers, NetworkAnswer};
use kiln_operations::ports::{Account as _, Identity as _, WayOut};
use kiln_operations::{Code, Error};
use url::Url;

use crate::ui::{Failure, Ui};

/// Write a kiln.toml of your own.
///
/// Asks on a terminal for what no flag gives, and looks at each answer where it can: the credentials and the region in
/// AWS, the subnets and their way out. Prints the form that registers the GitHub App with its one permission, and what to
/// do next. A file that is there is replaced only with --force.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask init
  cargo xtask init --organization acme --region eu-central-1 --client-id Iv23liEXAMPLE0000000 --network create-vpc
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

    /// The number at the end of the installation's address; saves each boot a request.
    #[arg(long, value_name = "NUMBER")]
    installation_id: Option<u64>,

    /// `create-vpc`, or subnets that exist: `VPC:SUBNET,SUBNET`.
    #[arg(long, value_name = "NETWORK")]
    network: Option<NetworkAnswer>,

    /// GitHub Enterprise Server's address; github.com when absent.
    #[arg(long, value_name = "URL", value_parser = init::github_url)]
    github_url: Option<Url>,

    /// Replace a file that is there.
    #[arg(long)]
    force: bool,

    /// Look at nothing in AWS.
    #[arg(long)]
    offline: bool,
}

pub(crate) async fn run(args: &Args, path: &Path, ui: &Ui) -> Result<(), Failure> {
    refuse_to_replace(args, path)?;
    ui.clear();
    let github_url = args.github_url.clone().unwrap_or_else(|| Url::parse(GITHUB).expect("the address is a constant"));
    let ask = Asker { flag: "--organization", question: "GitHub organization", default: None };
    let organization = ask.for_it(args.organization.as_ref(), init::organization)?;
    if args.client_id.is_none() {
        ui.talk(&format!(
            "An owner registers the App here, one permission filled in already; install it, and note its client id:\n  {}",
            init::app_form(&github_url, organization.as_str())
        ));
    }
    let ask = Asker { flag: "--client-id", question: "the App's client id", default: None };
    let app = ask.for_it(args.client_id.as_ref(), init::app)?;
    let region = region(args)?;
    let ask = Asker {
        flag: "--network",
        question: "network: create-vpc, or VPC:SUBNET,SUBNET",
        default: Some("create-vpc".to_owned()),
    };
    let mut given = args.network.as_ref();
    let text = loop {
        let answers = Answers {
            organization: organization.clone(),
            region: region.clone(),
            app: app.clone(),
            installation_id: args.installation_id,
            network: ask.for_it(given.take(), |text| text.parse::<NetworkAnswer>())?,
            github_url: args.github_url.clone(),
        };
        let text = init::kiln_toml(&answers)?;
        let looked = if args.offline { Ok(()) } else { look(&answers, ui).await };
        match looked {
            Ok(()) => break text,
            // The other answers are good: only this one is asked for once more.
            Err(Failure::Release(error)) if args.network.is_none() && std::io::stdin().is_terminal() => {
                ui.warn(&error.to_string());
            }
            Err(failure) => return Err(failure),
        }
    };
    std::fs::write(path, text).map_err(|error| {
        Error::new(Code::FileUnwritable, format!("can't write `{}`", path.display())).caused_by(error)
    })?;
    ui.talk(&format!("wrote {}; next:\n{NEXT}\n{}", path.display(), subject(&organization)));
    Ok(())
}

const GITHUB: &str = "https://github.com";

const NEXT: &str = "  \
  cargo xtask rotate-key --pem FILE    install the App's key (its settings: \"Generate a private key\")
  cargo xtask pin                      the newest runner and its digest
  cargo xtask doctor                   every precondition
  cargo xtask ami                      bake the image
  cargo xtask deploy                   bring the fleet up
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

fn region(args: &Args) -> Result<Region, Error> {
    let default = std::env::var("AWS_REGION").ok().filter(|region| !region.is_empty());
    let ask = Asker { flag: "--region", question: "AWS region", default };
    let region = ask.for_it(args.region.as_ref(), init::region)?;
    if args.offline || args.force {
        return Ok(region);
    }
    init::region(region.as_str()).map_err(|what| {
        Error::new(Code::AnswerInvalid, what).hint("is it spelt right? With --offline it is taken unseen")
    })
}

fn refuse_to_replace(args: &Args, path: &Path) -> Result<(), Error> {
    if args.force || std::fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    Err(Error::new(Code::FileExists, format!("`{}` is there already", path.display()))
        .hint("edit it; or replace it with --force; or write another with --config FILE"))
}

/// Asks for one thing.
struct Asker {
    flag: &'static str,
    question: &'static str,
    default: Option<String>,
}

impl Asker {
    /// A flag's value, or an answer on the terminal, looked at when it is given.
    fn for_it<T: Clone>(&self, given: Option<&T>, read: impl Fn(&str) -> Result<T, String>) -> Result<T, Error> {
        let Self { flag, question, default } = self;
        if let Some(given) = given {
            return Ok(given.clone());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Error::new(Code::NoTerminal, format!("there is no terminal to ask for the {question}"))
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
        read(&answer).map_err(|what| Error::new(Code::AnswerInvalid, what))
    }
}

/// Looks at what can be looked at before there is a key.
async fn look(answers: &Answers, ui: &Ui) -> Result<(), Failure> {
    let aws = Aws::connect(&answers.region).await;
    match aws.caller().await {
        Ok(caller) => ui.talk(&format!("AWS account {} in {}, as {}", caller.account, answers.region, caller.arn)),
        Err(error) => {
            let error = Error::from(error);
            ui.warn(&format!("AWS could not be asked ({error}): subnets and account are not looked at"));
            return Ok(());
        }
    }
    let NetworkAnswer::Subnets { vpc, subnets } = &answers.network else { return Ok(()) };
    let found = aws.subnets(subnets).await.map_err(Error::from)?;
    for id in subnets {
        let refused = match found.iter().find(|subnet| subnet.id == *id) {
            None => Some(format!("there is no subnet {id} in {}", answers.region)),
            Some(subnet) if subnet.vpc != *vpc => Some(format!("subnet {id} is in {}, not in {vpc}", subnet.vpc)),
            Some(subnet) if matches!(subnet.way_out, WayOut::None | WayOut::Gateway { public: false }) => {
                Some(format!("instances in subnet {id} have no way out to the internet"))
            }
            Some(_) => None,
        };
        if let Some(what) = refused {
            return Err(Error::new(Code::SubnetUnfit, what)
                .hint("name other subnets in --network, or `create-vpc`; --offline takes them unseen")
                .into());
        }
    }
    Ok(())
}
