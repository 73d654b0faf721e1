//! `cargo xtask init`.

use std::io::IsTerminal as _;
use std::path::Path;
use std::str::FromStr;

use dialoguer::Input;
use kiln_aws::Aws;
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
/// do next. The example in Kiln's repository is replaced; a kiln.toml of yours only with --force.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask init
  cargo xtask init --organization acme --region eu-central-1 --client-id Iv23li… --network create-vpc
  cargo xtask init --network vpc-0123456789abcdef0:subnet-0123456789abcdef0,subnet-0123456789abcdef1")]
pub struct Args {
    /// The organization's login at GitHub.
    #[arg(long, value_name = "LOGIN")]
    organization: Option<Organization>,

    /// The AWS region.
    #[arg(long, value_name = "REGION")]
    region: Option<Region>,

    /// The GitHub App's client id, at the top of its settings.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,

    /// The number at the end of the installation's address; saves each boot a request.
    #[arg(long, value_name = "NUMBER")]
    installation_id: Option<u64>,

    /// `create-vpc`, or subnets that exist: `VPC:SUBNET,SUBNET`.
    #[arg(long, value_name = "NETWORK")]
    network: Option<NetworkAnswer>,

    /// GitHub Enterprise Server's address; github.com when absent.
    #[arg(long, value_name = "URL")]
    github_url: Option<Url>,

    /// Replace a kiln.toml that is not the example.
    #[arg(long)]
    force: bool,

    /// Look at nothing in AWS.
    #[arg(long)]
    offline: bool,
}

pub(crate) async fn run(args: &Args, path: &Path, ui: &Ui) -> Result<(), Failure> {
    refuse_to_replace(args, path)?;
    let organization = given_or_asked(args.organization.as_ref(), "--organization", "GitHub organization", None)?;
    let github_url = args.github_url.clone().unwrap_or_else(|| Url::parse(GITHUB).expect("the address is a constant"));
    if args.client_id.is_none() {
        ui.talk(&format!(
            "An owner registers the App here, one permission filled in already; install it, and note its client id:\n  {}",
            init::app_form(&github_url, organization.as_str())
        ));
    }
    let client_id: String = given_or_asked(args.client_id.as_ref(), "--client-id", "the App's client id", None)?;
    let region: Region =
        given_or_asked(args.region.as_ref(), "--region", "AWS region", std::env::var("AWS_REGION").ok())?;
    let network: NetworkAnswer = given_or_asked(
        args.network.as_ref(),
        "--network",
        "network: create-vpc, or VPC:SUBNET,SUBNET",
        Some("create-vpc".to_owned()),
    )?;
    let answers = Answers {
        organization,
        region,
        client_id,
        installation_id: args.installation_id,
        network,
        github_url: args.github_url.clone(),
    };
    let text = init::kiln_toml(&answers)?;
    if !args.offline {
        look(&answers, ui).await?;
    }
    std::fs::write(path, text).map_err(|error| {
        Error::new(Code::FileUnwritable, format!("can't write `{}`", path.display())).caused_by(error)
    })?;
    ui.talk(&format!("wrote {}; next:\n{NEXT}", path.display()));
    Ok(())
}

const GITHUB: &str = "https://github.com";

const NEXT: &str = "  \
  cargo xtask rotate-key --pem FILE    install the App's key (its settings: \"Generate a private key\")
  cargo xtask pin                      the newest runner and its digest
  cargo xtask doctor                   every precondition
  cargo xtask ami                      bake the image
  cargo xtask deploy                   bring the fleet up";

fn refuse_to_replace(args: &Args, path: &Path) -> Result<(), Error> {
    match std::fs::read_to_string(path) {
        Ok(text) if text != init::EXAMPLE && !args.force => Err(Error::new(
            Code::FileExists,
            format!("`{}` is there already, and it is not the example", path.display()),
        )
        .hint("edit it; or replace it with --force; or write another with --config FILE")),
        _ => Ok(()),
    }
}

/// A flag's value, or an answer on the terminal.
fn given_or_asked<T>(given: Option<&T>, flag: &str, question: &str, default: Option<String>) -> Result<T, Error>
where
    T: Clone + FromStr,
    T::Err: std::fmt::Display,
{
    if let Some(given) = given {
        return Ok(given.clone());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Error::new(Code::NoTerminal, format!("there is no terminal to ask for the {question}"))
            .hint(format!("give {flag}; `cargo xtask init --help` has examples")));
    }
    let mut input = Input::<String>::new().with_prompt(question);
    if let Some(default) = default {
        input = input.default(default);
    }
    let is_one = |text: &String| text.trim().parse::<T>().map(drop).map_err(|error| error.to_string());
    let answer = input.validate_with(is_one).interact_text();
    let answer = answer.map_err(|error| {
        Error::new(Code::NoTerminal, "the terminal gave no answer").caused_by(std::io::Error::other(error))
    })?;
    answer.trim().parse().map_err(|error: T::Err| Error::new(Code::AnswerInvalid, error.to_string()))
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
