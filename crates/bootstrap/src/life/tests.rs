//! Thousands of generated lives on virtual time: whatever happens, no job is cancelled before its bound, no runner stays
//! registered after its instance is gone, and every wait ends.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Seconds until a listener has a session, and until it ends by itself with a code.
type Start = (Option<u64>, Option<(u64, Option<i32>)>);

/// What befalls a life, by the second.
#[derive(Debug, Clone)]
struct Fate {
    terms: Terms,
    /// When each job begins and how long it takes. One that can't begin then never does.
    jobs: Vec<(u64, u64)>,
    /// Each start of the listener.
    starts: Vec<Start>,
    /// How each call to GitHub ends: fails, or is answered after so many seconds. Then all are answered at once.
    github: Vec<Option<u64>>,
    /// Looks at the metadata service that fail before one succeeds.
    metadata: Vec<bool>,
    /// What the metadata service tells from when on.
    notices: Vec<(u64, Notice)>,
    /// When the process is asked to end.
    signal: Option<u64>,
    /// When GitHub forgets the runner.
    vanishes: Option<u64>,
    /// Requests to be replaced that are refused before one is granted.
    refusals: u32,
}

/// How long after all of it a life may last at most. Only the retired stay until they are told to go, which comes in the end.
const LATEST: u64 = 4000;

fn fates() -> impl Strategy<Value = Fate> {
    let terms =
        (any::<bool>(), prop::bool::weighted(0.8), 30u64..120, 60u64..400, 0u64..400, opt(50..900), opt(30..300));
    let off = prop::bool::weighted(0.3);
    let terms = (terms, off).prop_map(|((ephemeral, in_group, heartbeat, drain, pause, age, idle), off)| Terms {
        // Only an ephemeral runner's instance is without its metadata service.
        look_every: Duration::from_secs(if ephemeral && off { heartbeat / 3 } else { 2 }),
        hears_spot: !(ephemeral && off),
        ephemeral,
        in_group,
        heartbeat: Duration::from_secs(heartbeat),
        drain_limit: Duration::from_secs(drain),
        replace_pause: Duration::from_secs(pause),
        max_age: age.map(Duration::from_secs),
        idle_limit: idle.map(Duration::from_secs),
    });
    let codes = prop_oneof![Just(None), prop::sample::select(vec![0, 1, 2, 3, 4, 5, 6, 7, 139]).prop_map(Some)];
    let start = (
        prop_oneof![8 => (0u64..20).prop_map(Some), 1 => Just(None)],
        prop_oneof![2 => Just(None), 1 => (1u64..900, codes).prop_map(Some)],
    );
    let notice = prop::sample::select(vec![Notice::Terminate, Notice::Spot, Notice::Rebalance]);
    (
        terms,
        prop::collection::vec((1u64..1000, 1u64..900), 0..4),
        prop::collection::vec(start, 8),
        prop::collection::vec(prop_oneof![Just(None), (0u64..12).prop_map(Some)], 0..12),
        prop::collection::vec(any::<bool>(), 0..12),
        prop::collection::vec((1u64..1500, notice), 0..3),
        prop_oneof![3 => Just(None), 1 => (1u64..1500).prop_map(Some)],
        prop_oneof![5 => Just(None), 1 => (1u64..1500).prop_map(Some)],
        0u32..4,
    )
        .prop_map(|(terms, jobs, starts, github, metadata, notices, signal, vanishes, refusals)| Fate {
            terms,
            jobs,
            starts,
            github,
            metadata,
            notices,
            signal,
            vanishes,
            refusals,
        })
}

fn opt(range: std::ops::Range<u64>) -> impl Strategy<Value = Option<u64>> {
    prop_oneof![2 => Just(None), 1 => range.prop_map(Some)]
}

/// The world of one life.
struct Sim {
    fate: Fate,
    born: Instant,
    registered: Cell<bool>,
    /// When the running job ends, as GitHub sees it.
    busy_until: Cell<Option<Instant>>,
    starts: RefCell<VecDeque<Start>>,
    jobs: RefCell<Vec<(u64, u64)>>,
    github: RefCell<VecDeque<Option<u64>>>,
    metadata: RefCell<VecDeque<bool>>,
    refusals: Cell<u32>,
    /// Completions of the launch that are not heard.
    deaf: Cell<u32>,
    /// When the group began to terminate it, at its own request.
    granted: Cell<Option<Instant>>,
    launch: Cell<Option<Verdict>>,
    terminated: Cell<bool>,
    marked: Cell<bool>,
    heartbeats: RefCell<Vec<Instant>>,
    /// From when on, and for how long, a job may delay the end.
    leaving: Cell<Option<Instant>>,
    /// For each job that was cancelled: how long the instance had been leaving, if it was.
    cancelled: RefCell<Vec<Option<Duration>>>,
}

impl Sim {
    fn new(fate: Fate) -> Rc<Self> {
        Rc::new(Self {
            born: Instant::now(),
            registered: Cell::new(true),
            busy_until: Cell::new(None),
            starts: RefCell::new(fate.starts.iter().copied().collect()),
            jobs: RefCell::new(fate.jobs.clone()),
            github: RefCell::new(fate.github.iter().copied().collect()),
            metadata: RefCell::new(fate.metadata.iter().copied().collect()),
            refusals: Cell::new(fate.refusals),
            deaf: Cell::new(fate.refusals),
            granted: Cell::new(None),
            launch: Cell::new(None),
            terminated: Cell::new(false),
            marked: Cell::new(false),
            heartbeats: RefCell::default(),
            leaving: Cell::new(None),
            cancelled: RefCell::default(),
            fate,
        })
    }

    fn at(&self, secs: u64) -> Instant {
        self.born + Duration::from_secs(secs)
    }

    fn busy(&self) -> bool {
        self.busy_until.get().is_some_and(|end| Instant::now() < end)
    }

    async fn github(&self) -> anyhow::Result<()> {
        let answer = self.github.borrow_mut().pop_front();
        sleep(Duration::from_secs(answer.flatten().unwrap_or(0))).await;
        anyhow::ensure!(answer != Some(None), "GitHub does not answer");
        if self.fate.vanishes.is_some_and(|secs| Instant::now() >= self.at(secs)) {
            self.registered.set(false);
        }
        Ok(())
    }

    fn grant(&self) -> bool {
        if self.refusals.get() > 0 {
            self.refusals.set(self.refusals.get() - 1);
            return false;
        }
        if self.granted.get().is_none() {
            self.granted.set(Some(Instant::now()));
        }
        true
    }
}

/// A listener's process.
struct SimListener {
    sim: Rc<Sim>,
    heard: watch::Sender<Heard>,
    begun: Instant,
    session: Option<u64>,
    end: Option<(u64, Option<i32>)>,
    over: Option<Option<i32>>,
    job: Option<Instant>,
}

impl Process for SimListener {
    fn heard(&self) -> watch::Receiver<Heard> {
        self.heard.subscribe()
    }

    /// Takes jobs as they come, until it ends by itself.
    async fn exit(&mut self) -> Option<i32> {
        if let Some(code) = self.over {
            return code;
        }
        let end = self.end.map(|(secs, _)| self.begun + Duration::from_secs(secs));
        let session = self.session.map(|secs| self.begun + Duration::from_secs(secs));
        let code = loop {
            let online = self.heard.borrow().online;
            let now = Instant::now();
            let next = self.sim.jobs.borrow().iter().map(|(at, _)| self.sim.at(*at)).filter(|at| *at > now).min();
            tokio::select! {
                biased;
                () = until(end) => {
                    // Its job dies with it; GitHub notices after a while.
                    if self.job.take().is_some() {
                        self.sim.busy_until.set(Some(Instant::now() + Duration::from_secs(5)));
                    }
                    break self.end.and_then(|(_, code)| code);
                }
                () = until(session), if !online => {
                    self.heard.send_modify(|heard| heard.online = true);
                }
                () = until(self.job), if self.job.is_some() => {
                    self.job = None;
                    self.sim.busy_until.set(None);
                    self.heard.send_modify(|heard| heard.busy = false);
                    if self.sim.fate.terms.ephemeral {
                        self.sim.registered.set(false);
                        break Some(0);
                    }
                }
                () = until(next), if online && self.job.is_none() => {
                    let mut jobs = self.sim.jobs.borrow_mut();
                    let index = jobs.iter().position(|(at, _)| Some(self.sim.at(*at)) == next).unwrap();
                    let (_, secs) = jobs.remove(index);
                    if self.sim.registered.get() {
                        self.job = Some(Instant::now() + Duration::from_secs(secs));
                        self.sim.busy_until.set(self.job);
                        self.heard.send_modify(|heard| heard.busy = true);
                    }
                }
            }
        };
        self.over = Some(code);
        code
    }

    async fn stop(&mut self) {
        if self.over.is_none() && self.job.take().is_some() && self.sim.busy() {
            self.sim.cancelled.borrow_mut().push(self.sim.leaving.get().map(|since| since.elapsed()));
            self.sim.busy_until.set(None);
        }
        self.over = Some(Some(0));
    }
}

impl Outside for Rc<Sim> {
    type Listener = SimListener;

    fn start(&self) -> anyhow::Result<SimListener> {
        let next = self.starts.borrow_mut().pop_front();
        let (session, end) = next.unwrap_or((Some(1), None));
        let heard = watch::Sender::new(Heard::default());
        Ok(SimListener { sim: Rc::clone(self), heard, begun: Instant::now(), session, end, over: None, job: None })
    }

    async fn delete_runner(&self) -> anyhow::Result<Deleted> {
        self.github().await?;
        Ok(match (self.registered.get(), self.busy()) {
            (false, _) => Deleted::Absent,
            (true, true) => Deleted::Busy,
            (true, false) => {
                self.registered.set(false);
                Deleted::Gone
            }
        })
    }

    async fn is_registered(&self) -> anyhow::Result<bool> {
        self.github().await?;
        Ok(self.registered.get())
    }

    async fn notice(&self) -> anyhow::Result<Option<Notice>> {
        anyhow::ensure!(self.metadata.borrow_mut().pop_front() != Some(false), "the metadata service does not answer");
        let now = Instant::now();
        let told = self.fate.notices.iter().filter(|(at, _)| now >= self.at(*at)).map(|(_, notice)| *notice);
        let asked = self.granted.get().map(|_| Notice::Terminate);
        let latest = (now >= self.at(LATEST)).then_some(Notice::Terminate);
        let heard = |notice: &Notice| self.fate.terms.hears_spot || *notice == Notice::Terminate;
        let all: Vec<Notice> = told.chain(asked).chain(latest).filter(heard).collect();
        Ok([Notice::Spot, Notice::Terminate, Notice::Rebalance].into_iter().find(|notice| all.contains(notice)))
    }

    async fn signalled(&self) -> &'static str {
        let at = self.fate.signal.unwrap_or(LATEST);
        // One signal is told once.
        if Instant::now() > self.at(at) {
            std::future::pending::<()>().await;
        }
        sleep_until(self.at(at)).await;
        "SIGTERM"
    }

    async fn complete_launch(&self, verdict: Verdict) -> bool {
        if self.deaf.get() > 0 {
            self.deaf.set(self.deaf.get() - 1);
            return false;
        }
        assert_eq!(self.launch.replace(Some(verdict)), None, "the launch was completed twice");
        true
    }

    async fn complete_termination(&self) {
        assert!(!self.terminated.replace(true), "the termination was completed twice");
    }

    async fn heartbeat(&self) {
        self.heartbeats.borrow_mut().push(Instant::now());
    }

    async fn replace(&self) -> bool {
        self.grant()
    }

    async fn scale_in(&self) -> bool {
        self.grant()
    }

    async fn mark_deprecated(&self) {
        assert!(!self.marked.replace(true), "the instance was marked twice");
    }

    fn ready(&self) {}

    fn stopping(&self) {
        self.leaving.set(Some(Instant::now()));
    }
}

async fn live_through(fate: Fate) -> Result<(), String> {
    let sim = Sim::new(fate);
    let terms = sim.fate.terms.clone();
    let life = Life { outside: &sim, terms: &terms, born: sim.born };
    // The latest call to leave, the longest drain, and the last words.
    let longest = Duration::from_secs(LATEST) + terms.drain_limit + FORGET_BOUND * 3 + Duration::from_secs(600);
    let end =
        tokio::time::timeout(longest, life.live()).await.map_err(|_| format!("it does not end in {longest:?}"))?;
    if sim.registered.get() {
        return Err(format!("{end:?}, but the runner stays registered"));
    }
    // A job is lost only when the bound is reached, and a spot instance's is two minutes less ten seconds.
    let spot = terms.hears_spot && sim.fate.notices.iter().any(|(_, notice)| *notice == Notice::Spot);
    let allowed = if spot { terms.drain_limit.min(SPOT_BOUND) } else { terms.drain_limit };
    for leaving in sim.cancelled.borrow().iter() {
        if leaving.is_none_or(|leaving| leaving < allowed) {
            return Err(format!(
                "a job was cancelled {leaving:?} after the instance began to leave, before {allowed:?}"
            ));
        }
    }
    if end == End::Left && terms.in_group && !sim.terminated.get() {
        return Err("the group was not told of the end".to_owned());
    }
    // Auto Scaling gives up an instance that is silent for longer than the heartbeat's timeout.
    if let Some(since) = sim.leaving.get().filter(|_| terms.in_group) {
        // It hears of its end in time, unless what it asks does not answer.
        let begun =
            sim.fate.notices.iter().filter(|(_, notice)| *notice == Notice::Terminate).map(|(at, _)| sim.at(*at));
        let begun = begun.chain(sim.granted.get()).min();
        if let Some(late) = begun.and_then(|begun| since.checked_duration_since(begun))
            && late > terms.heartbeat
            && sim.fate.metadata.iter().all(|answers| *answers)
            && sim.fate.github.is_empty()
        {
            return Err(format!("it heard of its end after {late:?}, longer than {:?}", terms.heartbeat));
        }
        let mut last = since;
        for beat in sim.heartbeats.borrow().iter().copied().chain([Instant::now().min(since + terms.drain_limit)]) {
            if beat.saturating_duration_since(last) > terms.heartbeat {
                return Err(format!("silent for {:?}, longer than {:?}", beat - last, terms.heartbeat));
            }
            last = beat;
        }
    }
    Ok(())
}

#[test]
fn ten_thousand_lives_lose_no_job_and_leave_no_runner_behind() {
    let mut runner = TestRunner::new(Config { cases: 10_000, failure_persistence: None, ..Config::default() });
    let lived = runner.run(&fates(), |fate| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(live_through(fate)).map_err(TestCaseError::fail)
    });
    if let Err(error) = lived {
        panic!("{error}");
    }
}

/// A life in which nothing goes wrong but what a test says.
fn quiet() -> Fate {
    let terms = Terms {
        look_every: LOOK_EVERY,
        hears_spot: true,
        ephemeral: false,
        in_group: true,
        heartbeat: Duration::from_secs(60),
        drain_limit: Duration::from_secs(3600),
        replace_pause: Duration::from_secs(300),
        max_age: None,
        idle_limit: None,
    };
    Fate {
        terms,
        jobs: Vec::new(),
        starts: Vec::new(),
        github: Vec::new(),
        metadata: Vec::new(),
        notices: Vec::new(),
        signal: None,
        vanishes: None,
        refusals: 0,
    }
}

async fn lived(fate: Fate) -> (Rc<Sim>, End, Duration) {
    let sim = Sim::new(fate);
    let terms = sim.fate.terms.clone();
    let end = Life { outside: &sim, terms: &terms, born: sim.born }.live().await;
    let took = sim.born.elapsed();
    (sim, end, took)
}

#[tokio::test(start_paused = true)]
async fn a_job_is_waited_for_with_heartbeats() {
    let (sim, end, took) =
        lived(Fate { jobs: vec![(10, 1000)], notices: vec![(20, Notice::Terminate)], ..quiet() }).await;
    assert_eq!((end, sim.cancelled.borrow().len(), sim.terminated.get()), (End::Left, 0, true));
    assert!((1010..1030).contains(&took.as_secs()), "{took:?}");
    assert!(sim.heartbeats.borrow().len() >= 30, "{}", sim.heartbeats.borrow().len());
}

#[tokio::test(start_paused = true)]
async fn a_launch_whose_completion_is_not_heard_is_completed_again() {
    let (sim, _, _) = lived(Fate { refusals: 2, notices: vec![(200, Notice::Terminate)], ..quiet() }).await;
    assert_eq!((sim.launch.get(), sim.deaf.get()), (Some(Verdict::Continue), 0));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_outlives_the_bound_is_lost_then_and_no_earlier() {
    let (sim, end, _) = lived(Fate { jobs: vec![(10, 9000)], notices: vec![(20, Notice::Terminate)], ..quiet() }).await;
    assert_eq!((end, sim.registered.get()), (End::Left, false));
    assert_eq!(*sim.cancelled.borrow(), [Some(Duration::from_secs(3600))]);
}

#[tokio::test(start_paused = true)]
async fn a_spot_notice_uses_its_two_minutes_and_no_more() {
    let fate = Fate { jobs: vec![(10, 1000)], notices: vec![(20, Notice::Terminate), (200, Notice::Spot)], ..quiet() };
    let (sim, _, took) = lived(fate).await;
    assert_eq!(sim.cancelled.borrow().len(), 1);
    assert!((300..=320).contains(&took.as_secs()), "{took:?}");
    assert!(!sim.registered.get());
}

#[tokio::test(start_paused = true)]
async fn a_deprecated_version_is_not_started_again_and_gives_up_its_launch_no_earlier_than_allowed() {
    for (told, launch) in [(400, Some(Verdict::Abandon)), (290, None)] {
        let fate =
            Fate { starts: vec![(None, Some((3, Some(7))))], notices: vec![(told, Notice::Terminate)], ..quiet() };
        let (sim, end, _) = lived(fate).await;
        assert_eq!((end, sim.launch.get(), sim.granted.get()), (End::Left, launch, None));
        assert_eq!((sim.starts.borrow().len(), sim.marked.get()), (0, true));
    }
}

/// Its runner served, and GitHub stopped to serve its version.
#[tokio::test(start_paused = true)]
async fn a_version_that_is_deprecated_while_it_serves_leaves_the_group_as_it_is() {
    let fate =
        Fate { starts: vec![(Some(1), Some((50, Some(7))))], notices: vec![(3000, Notice::Terminate)], ..quiet() };
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.launch.get(), sim.granted.get()), (End::Left, Some(Verdict::Continue), None));
    assert!(sim.marked.get() && took >= Duration::from_secs(3000), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_metadata_service_a_termination_is_heard_and_a_job_of_two_days_is_not_lost() {
    let mut fate = Fate { jobs: vec![(10, 170_000)], notices: vec![(20, Notice::Terminate)], ..quiet() };
    (fate.terms.ephemeral, fate.terms.hears_spot, fate.terms.look_every) = (true, false, Duration::from_secs(20));
    fate.terms.drain_limit = Duration::from_secs(172_800);
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.cancelled.borrow().len(), sim.terminated.get()), (End::Left, 0, true));
    assert!((170_010..170_030).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_broken_listener_gives_the_instance_up_no_earlier_than_allowed() {
    let fate = Fate { starts: vec![(None, Some((1, Some(2)))); 9], ..quiet() };
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.launch.get()), (End::Broken, Some(Verdict::Abandon)));
    assert_eq!(sim.starts.borrow().len(), 9 - MOST_STARTS as usize);
    assert!(took >= Duration::from_secs(300), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn after_its_one_job_an_ephemeral_instance_asks_to_be_replaced_until_it_is_granted() {
    let mut fate = Fate { jobs: vec![(10, 50)], refusals: 2, ..quiet() };
    fate.terms.ephemeral = true;
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.terminated.get()), (End::Left, true));
    assert!((180..200).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_github_forgot_is_noticed_and_its_instance_replaced() {
    let (sim, end, took) = lived(Fate { vanishes: Some(100), ..quiet() }).await;
    assert_eq!((end, sim.granted.get().is_some()), (End::Broken, true));
    assert!(took < WATCH_EVERY + Duration::from_secs(60), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_instance_leaves_where_the_group_can_do_without_it() {
    let mut fate = Fate { jobs: vec![(100, 500)], refusals: 1, ..quiet() };
    fate.terms.idle_limit = Some(Duration::from_secs(300));
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.cancelled.borrow().len()), (End::Left, 0));
    // Idle from 600 s on; refused at 900 s, granted at 1,200 s.
    assert!((1200..1210).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_old_instance_is_replaced_after_its_job() {
    let mut fate = Fate { jobs: vec![(100, 500)], ..quiet() };
    fate.terms.max_age = Some(Duration::from_secs(300));
    let (sim, end, took) = lived(fate).await;
    assert_eq!((end, sim.cancelled.borrow().len()), (End::Left, 0));
    assert!((600..630).contains(&took.as_secs()), "{took:?}");
}

#[test]
fn only_a_deprecated_version_is_never_started_again() {
    assert_eq!(ended(Some(7), false), Ended::Deprecated);
    assert_eq!(ended(Some(7), true), Ended::Deprecated);
    assert_eq!(ended(Some(0), true), Ended::JobDone);
    for code in [Some(0), Some(1), Some(2), Some(3), Some(4), Some(5), Some(6), Some(139), None] {
        assert!(matches!(ended(code, false), Ended::Again(_)), "{code:?}");
    }
}
