//! `Runner.Listener run`: a session, jobs one after the other, each given to a worker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_stand_ins::github::{Conclusion, Step};
use reqwest::{Client, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::start::{Environment, root};
use crate::worker::{Order, Worker};
use crate::{
    Inputs, RETRYABLE, SESSION_CONFLICT, TERMINATED, VERSION_DEPRECATED, client, files, message, stamp, terminated,
};

/// After so long a session that is not given is asked for once more; 30 s in reality.
///
/// source: Runner.Listener/BrokerMessageListener.cs:38
const SESSION_PAUSE: Duration = Duration::from_secs(1);

/// The refusal that is the last one of those for another session of the runner's: in reality the eighth, after 240 s.
///
/// source: Runner.Listener/BrokerMessageListener.cs:39 and 478-498. GitHub's stand-in keeps the session of a runner that it does
/// not hear for five seconds, GitHub for a minute or two.
const MOST_CONFLICTS: u32 = 8;

/// A poll that failed is repeated after 15 to 60 s in reality, and the tenth failure in a row ends the listener.
///
/// source: Runner.Listener/BrokerMessageListener.cs:331-368
const POLL_PAUSE: Duration = Duration::from_secs(1);
const MOST_POLL_FAILURES: u32 = 10;

/// The stand-in GitHub takes a runner for offline after five seconds.
const RENEW_EVERY: Duration = Duration::from_secs(1);

/// What a process says that SIGTERM ended: .NET's runtime ends with it after the handler of its unloading.
///
/// source: Runner.Listener/Runner.cs:353-360
/// assumption: the code is the runtime's own 128 + 15.
const ENDED_BY_SIGTERM: u8 = 143;

const GONE: &str = "Failed to create a session. The runner registration has been deleted from the server, please \
                    re-configure. Runner registrations are automatically deleted for runners that have not connected to the \
                    service recently.";

/// A job as it is offered.
#[derive(Debug, Deserialize)]
struct Job {
    job: u64,
    /// As a person sees it; it can hold anything.
    name: String,
    steps: Vec<Step>,
}

/// Which signal asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    No,
    Interrupt,
    Terminate,
}

/// How a poll failed.
enum Unheard {
    /// The end of the listener, with its code.
    End(u8),
    /// To be repeated.
    Again(anyhow::Error),
}

struct Listener<'a> {
    client: Client,
    /// The session's address.
    session: String,
    name: String,
    root: PathBuf,
    work: PathBuf,
    ephemeral: bool,
    environment: &'a Environment,
    asked: watch::Receiver<Asked>,
}

pub(crate) async fn run(inputs: &Inputs, environment: &Environment) -> anyhow::Result<u8> {
    let root = root()?;
    if let Some(encoded) = inputs.get("jitconfig")
        && let Err(error) = unpack(&root, encoded)
    {
        return Ok(terminated(&error));
    }
    // source: Runner.Listener/Runner.cs:272-278
    if !files::is_configured(&root) {
        eprintln!("Runner is not configured.");
        return Ok(TERMINATED);
    }
    let asked = ending()?;
    let settings = files::read(&root, files::FILES[0])?;
    let text = |name: &str| files::setting(&settings, name).and_then(Value::as_str);
    let host = text("serverUrl").context("the settings name no server")?.to_owned();
    let work = root.join(text("workFolder").unwrap_or("_work"));
    let client = client()?;
    let body = json!({ "credential": files::read(&root, files::FILES[2])?["d"], "version": files::version()? });
    let opened = tokio::select! {
        opened = open_session(&client, &host, &body) => opened?,
        () = end_asked(&asked) => return Ok(end_code(*asked.borrow())),
    };
    let opened = match opened {
        Ok(opened) => opened,
        Err(code) => return Ok(code),
    };
    let session = format!("{host}/_runner/sessions/{}", opened["session"].as_str().unwrap_or_default());
    // source: Runner.Listener/Runner.cs:490-491: before the first poll, which is what a version too old is refused at.
    println!("Current runner version: '{}'\n{}: Listening for Jobs", files::version()?, stamp());
    let name = opened["name"].as_str().unwrap_or_default().to_owned();
    let ephemeral = opened["ephemeral"] == true;
    let listener = Listener { client, session, name, root, work, ephemeral, environment, asked };
    let code = listener.listen().await;
    // Gone already where the runner was ephemeral.
    let _ = listener.client.delete(&listener.session).send().await;
    code
}

/// Asks for a session until there is one, or the answer is final.
///
/// source: Runner.Listener/BrokerMessageListener.cs:108-238
async fn open_session(client: &Client, host: &str, body: &Value) -> anyhow::Result<Result<Value, u8>> {
    let (mut complained, mut conflicts) = (false, 0);
    loop {
        println!("\n√ Connected to GitHub\n");
        let error = match client.post(format!("{host}/_runner/sessions")).json(body).send().await {
            Ok(response) if response.status().is_success() => {
                if complained {
                    println!("{}: Runner reconnected.", stamp());
                }
                return Ok(Ok(response.json().await?));
            }
            Ok(response) => match refused(response, &mut conflicts).await {
                Ok(code) => return Ok(Err(code)),
                Err(said) => said,
            },
            Err(error) => format!("{:#}", anyhow::Error::from(error)),
        };
        if !std::mem::replace(&mut complained, true) {
            eprintln!("{}: Runner connect error: {error}. Retrying until reconnected.", stamp());
        }
        tokio::time::sleep(SESSION_PAUSE).await;
    }
}

/// A refusal of a session: a code that ends the listener, or what is wrong for now.
///
/// source: Runner.Listener/BrokerMessageListener.cs:182-218 and 464-525
async fn refused(response: Response, conflicts: &mut u32) -> Result<u8, String> {
    let status = response.status();
    let said = message(response).await;
    match status {
        // The exchange of the runner's key for a token says `invalid_client`.
        StatusCode::NOT_FOUND => {
            eprintln!("{GONE}");
            Ok(TERMINATED)
        }
        StatusCode::FORBIDDEN => {
            eprintln!("Failed to create session. {said}");
            Ok(TERMINATED)
        }
        StatusCode::CONFLICT => {
            eprintln!("A session for this runner already exists.");
            *conflicts += 1;
            if *conflicts < MOST_CONFLICTS {
                return Err(said);
            }
            eprintln!("Stop retry on SessionConflictException after retried for 240 seconds.");
            eprintln!("Failed to create session. {said}");
            Ok(SESSION_CONFLICT)
        }
        _ => Err(said),
    }
}

/// A just-in-time configuration: files by name, each in base64, the whole in base64. Any name is written.
///
/// source: Runner.Listener/Runner.cs:235-268
fn unpack(root: &Path, encoded: &str) -> anyhow::Result<()> {
    let files: BTreeMap<String, String> = serde_json::from_slice(&STANDARD.decode(encoded)?)?;
    for (name, content) in files {
        files::write(root, &name, &STANDARD.decode(content)?)?;
    }
    Ok(())
}

/// SIGINT is Ctrl-C, which the listener has a handler for; SIGTERM unloads it without a word. Either cancels the job.
///
/// source: Runner.Listener/Runner.cs:353-392
fn ending() -> anyhow::Result<watch::Receiver<Asked>> {
    let (tell, asked) = watch::channel(Asked::No);
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::spawn(async move {
        let which = tokio::select! {
            _ = interrupt.recv() => {
                println!("Exiting...");
                Asked::Interrupt
            }
            _ = terminate.recv() => Asked::Terminate,
        };
        let _ = tell.send(which);
        // Held, so that the receivers go on seeing the value.
        std::future::pending::<()>().await;
    });
    Ok(asked)
}

async fn end_asked(asked: &watch::Receiver<Asked>) {
    let mut asked = asked.clone();
    let _ = asked.wait_for(|asked| *asked != Asked::No).await;
}

fn end_code(asked: Asked) -> u8 {
    if asked == Asked::Terminate { ENDED_BY_SIGTERM } else { 0 }
}

impl Listener<'_> {
    async fn listen(&self) -> anyhow::Result<u8> {
        let mut failures = 0;
        loop {
            let job = tokio::select! {
                job = self.poll() => job,
                () = end_asked(&self.asked) => return Ok(end_code(*self.asked.borrow())),
            };
            match job {
                Ok(None) => failures = 0,
                Ok(Some(job)) => {
                    failures = 0;
                    self.work(&job).await?;
                    if self.ephemeral {
                        files::delete_local_config(&self.root)?;
                    }
                    let asked = *self.asked.borrow();
                    if self.ephemeral || asked != Asked::No {
                        return Ok(end_code(asked));
                    }
                }
                Err(Unheard::End(code)) => return Ok(code),
                Err(Unheard::Again(error)) => {
                    failures += 1;
                    if failures == 1 {
                        eprintln!("{}: Runner connect error: {error:#}. Retrying until reconnected.", stamp());
                    }
                    if failures >= MOST_POLL_FAILURES {
                        return Err(error);
                    }
                    tokio::time::sleep(POLL_PAUSE).await;
                }
            }
        }
    }

    /// source: Runner.Listener/BrokerMessageListener.cs:271-390, Sdk/WebApi/WebApi/BrokerHttpClient.cs:108-140
    async fn poll(&self) -> Result<Option<Job>, Unheard> {
        let again = |error: reqwest::Error| Unheard::Again(error.into());
        let response = self.client.post(format!("{}/poll", self.session)).send().await.map_err(again)?;
        match response.status() {
            StatusCode::NO_CONTENT => Ok(None),
            StatusCode::OK => Ok(Some(response.json().await.map_err(again)?)),
            // source: Runner.Listener/Runner.cs:823-830 and 877-880: it ends well, and forgets its registration.
            StatusCode::NOT_FOUND => {
                eprintln!("The runner no longer exists on the server. Cleaning up local configuration.");
                files::delete_local_config(&self.root).map_err(|error| {
                    eprintln!("An error occurred: {error:#}");
                    Unheard::End(RETRYABLE)
                })?;
                Err(Unheard::End(0))
            }
            // source: Runner.Listener/Program.cs:142-147 and 162-170
            StatusCode::FORBIDDEN => {
                eprintln!("An error occurred: {}", message(response).await);
                let told = self.environment.get("ACTIONS_RUNNER_RETURN_VERSION_DEPRECATED_EXIT_CODE");
                Err(Unheard::End(if told == Some("1") { VERSION_DEPRECATED } else { TERMINATED }))
            }
            status => Err(Unheard::Again(anyhow::anyhow!("Failed to get job message. Status: {status}"))),
        }
    }

    /// source: Runner.Listener/JobDispatcher.cs:356-600
    async fn work(&self, job: &Job) -> anyhow::Result<()> {
        println!("{}: Running job: {}", stamp(), job.name);
        // source: Runner.Listener/JobDispatcher.cs:396-406: a job whose first renewal fails is given up without another word.
        if let Err(error) = self.post("renew", &Value::Null).await {
            eprintln!("the job could not be renewed: {error:#}");
            return Ok(());
        }
        let order = Order {
            session: self.session.clone(),
            runner: self.name.clone(),
            work: self.work.clone(),
            job: job.job,
            steps: job.steps.clone(),
        };
        let mut worker = Worker::start(&self.root, self.environment, &order).await?;
        let done = tokio::select! {
            done = worker.done() => Some(done?),
            lost = self.renew() => {
                worker.cancel().await?;
                return Err(lost);
            }
            // The real runner cancels its job on either signal: it has no drain of its own.
            () = end_asked(&self.asked) => None,
        };
        let done = match done {
            Some(done) => done,
            None => worker.cancel().await?,
        };
        let said = match done.conclusion {
            Conclusion::Success => "Succeeded",
            Conclusion::Failure => "Failed",
            Conclusion::Cancelled => "Canceled",
        };
        println!("{}: Job {} completed with result: {said}", stamp(), job.name);
        self.post("complete", &json!({ "conclusion": done.conclusion, "output": done.output })).await?;
        Ok(())
    }

    /// Lets GitHub know that the runner is at work; ends when GitHub does not know it any more.
    ///
    /// assumption: the real one's job is cancelled by a message; here the lost renewal says as much.
    async fn renew(&self) -> anyhow::Error {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            match self.post("renew", &Value::Null).await {
                Err(error) if error.downcast_ref::<reqwest::Error>().is_none_or(|error| error.status().is_some()) => {
                    return error.context("the job can't be renewed");
                }
                // source: Runner.Listener/JobDispatcher.cs `RenewJobRequestAsync`: what does not reach GitHub is repeated.
                _ => {}
            }
        }
    }

    async fn post(&self, what: &str, body: &Value) -> anyhow::Result<Response> {
        let response = self.client.post(format!("{}/{what}", self.session)).json(body).send().await?;
        if let Err(error) = response.error_for_status_ref() {
            bail!(error);
        }
        Ok(response)
    }
}
