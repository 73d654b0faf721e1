//! The fleet's lock where S3's answers are lost, its text is nonsense, or somebody takes it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_aws::Aws;
use kiln_config::config::Config;
use kiln_operations::deploy::{self, LockOwner};
use kiln_operations::destroy::{self, Request, Session};
use kiln_operations::ports::Progress;
use kiln_operations::{Code, Result};

use crate::{Answer, Asked, KILN_TOML, query, wire};

struct Quiet;

impl Progress for Quiet {
    fn say(&self, _: &str) {}
    fn state(&self, _: &str) {}
}

/// The lock as it lies in S3, and how S3 answers.
#[derive(Default)]
struct Locked {
    text: Option<String>,
    written: Option<&'static str>,
    /// How often it was written.
    writes: usize,
    /// Is the answer to this write lost, though it is carried out?
    loses: Option<fn(usize) -> bool>,
    /// Somebody else takes it after so many writes.
    taken_after: Option<usize>,
    /// For so many looks the group has an instance that leaves.
    looks: usize,
}

const OTHER: &str = r#"{"holder":"another pipeline","machine":"fixture","process":7,"ends_at_secs":99999999999}"#;

impl Locked {
    fn etag(&self) -> String {
        format!("\"{}\"", self.writes)
    }

    fn put(&mut self, asked: &Asked) -> Answer {
        let refused = Answer::of(412, "<Error><Code>PreconditionFailed</Code><Message>no</Message></Error>");
        let fits = match asked.headers.get("if-match") {
            Some(version) => self.text.is_some() && *version == self.etag(),
            None => self.text.is_none(),
        };
        if !fits {
            return refused;
        }
        self.writes += 1;
        self.text = Some(asked.body.clone());
        let lost = self.loses.is_some_and(|loses| loses(self.writes));
        let answer = Answer { etag: Some(self.etag()), lost, ..Answer::of(200, "") };
        if self.taken_after == Some(self.writes) {
            self.writes += 1;
            self.text = Some(OTHER.to_owned());
        }
        answer
    }

    fn get(&self) -> Answer {
        let none = || Answer::of(404, "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>");
        let answer = |text: &String| Answer { etag: Some(self.etag()), ..Answer::of(200, text) };
        let mut answer = self.text.as_ref().map_or_else(none, answer);
        answer.written = self.written;
        answer
    }

    fn respond(&mut self, asked: &Asked) -> Answer {
        let operation = asked.operation.as_str();
        match operation {
            "GetCallerIdentity" => {
                let arn = "<Arn>arn:aws:iam::000000000000:user/somebody</Arn><Account>000000000000</Account>";
                Answer::of(200, query(operation, arn))
            }
            "GetParameter" => Answer::of(400, r#"{"__type":"ParameterNotFound"}"#),
            "DescribeStacks" => {
                let error = "<Code>ValidationError</Code><Message>Stack with id x does not exist</Message>";
                Answer::of(400, format!("<ErrorResponse><Error>{error}</Error></ErrorResponse>"))
            }
            "DescribeAutoScalingGroups" => {
                self.looks = self.looks.saturating_sub(1);
                let instance = "<Instances><member><InstanceId>i-00000001</InstanceId>\
                                <LifecycleState>Terminating:Wait</LifecycleState></member></Instances>";
                let group = format!(
                    "<member><AutoScalingGroupName>g</AutoScalingGroupName><MinSize>0</MinSize><MaxSize>0</MaxSize>\
                     <DesiredCapacity>0</DesiredCapacity>{}</member>",
                    if self.looks > 0 { instance } else { "" }
                );
                Answer::of(200, query(operation, &format!("<AutoScalingGroups>{group}</AutoScalingGroups>")))
            }
            _ if operation.starts_with("GET ") && operation.ends_with("lock/none") => {
                Answer::of(404, "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
            }
            _ if operation.starts_with("GET ") => self.get(),
            _ if operation.starts_with("PUT ") => self.put(asked),
            other => panic!("unexpected {other}"),
        }
    }
}

/// Destroys a fleet of one instance that takes minutes to leave, under the lock.
async fn destroyed(locked: Locked) -> (Result<()>, Arc<Mutex<Locked>>) {
    let locked = Arc::new(Mutex::new(locked));
    let config = Config::from_toml("kiln.toml", KILN_TOML).unwrap();
    let request = Request {
        config: &config,
        fleets: vec!["linux".parse().unwrap()],
        network: false,
        now: false,
        lock_wait: Duration::ZERO,
    };
    let holder =
        LockOwner { name: "this pipeline".to_owned(), machine: "here".to_owned(), process: 1, ended: |_| false };
    let cloud = cloud(&locked).await;
    let operator = Session { progress: &Quiet, holder: &holder };
    (destroy::apply(&request, &cloud, None, operator).await, locked)
}

async fn cloud(locked: &Arc<Mutex<Locked>>) -> Aws {
    let locked = Arc::clone(locked);
    wire(move |asked| locked.lock().unwrap().respond(asked)).await.0
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_is_not_another_run() {
    // The lock's first write; a heartbeat; every other write, the last one that gives it back among them.
    for loses in [|write| write == 1, |write| write == 3, |write| write % 2 == 0, |_| true] as [fn(usize) -> bool; 4] {
        let (result, locked) = destroyed(Locked { looks: 20, loses: Some(loses), ..Locked::default() }).await;
        result.unwrap();
        let locked = locked.lock().unwrap();
        assert!(locked.writes > 3, "{} writes: no heartbeat was among them", locked.writes);
        assert_eq!(locked.text.as_deref(), Some("{}"), "the lock is given back");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_another_run_took_ends_this_one() {
    let (result, locked) = destroyed(Locked { looks: 50, taken_after: Some(2), ..Locked::default() }).await;
    assert_eq!(result.unwrap_err().code, Code::LockLost);
    assert_eq!(locked.lock().unwrap().text.as_deref(), Some(OTHER), "the other run's lock stays");
}

#[tokio::test(start_paused = true)]
async fn whatever_a_lock_says_it_ends_soon_after_it_was_written() {
    let config = Config::from_toml("kiln.toml", KILN_TOML).unwrap();
    let fleet = "linux".parse().unwrap();
    for end in ["99999999999", "1000000000000000000"] {
        let text = format!(r#"{{"holder":"a pipeline","machine":"fixture","process":7,"ends_at_secs":{end}}}"#);
        let long_ago = Some("Wed, 25 Nov 2020 12:00:00 GMT");
        let lock = |written| Locked { text: Some(text.clone()), written, ..Locked::default() };
        // Where it is not known when it was written, it at least does not say that it lasts for ages.
        let held = deploy::held(&config, &fleet, &cloud(&Arc::new(Mutex::new(lock(None)))).await).await.unwrap();
        assert!(held.is_some_and(|held| held.left_secs <= 90));
        let held = deploy::held(&config, &fleet, &cloud(&Arc::new(Mutex::new(lock(long_ago)))).await).await.unwrap();
        assert_eq!(held, None);
        let (result, _) = destroyed(lock(long_ago)).await;
        result.unwrap();
        let (result, _) = destroyed(lock(None)).await;
        let error = result.unwrap_err();
        assert_eq!(error.code, Code::FleetLocked);
        assert!(error.hint.is_some_and(|hint| hint.contains("within 90 s")));
    }
}
