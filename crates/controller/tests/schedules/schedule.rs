//! What a generated run consists of: jobs, faults, and how the world behaves around them.

use std::fmt;

/// A generated run.
#[derive(Debug, Clone)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) min_idle: u32,
    pub(crate) max: u32,
    pub(crate) linger_secs: u64,
    pub(crate) max_age_secs: u64,
    pub(crate) spot: bool,
    /// GitHub Enterprise Server: jobs are acquired.
    pub(crate) acquire: bool,
    /// EC2's list is at most so late, in seconds.
    pub(crate) lag: u64,
    pub(crate) jobs: Vec<Job>,
    pub(crate) faults: Vec<Fault>,
}

/// A job.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// When it is queued, in seconds.
    pub(crate) at: u64,
    /// How long it runs.
    pub(crate) secs: u64,
    pub(crate) started: Started,
    /// GitHub says after this part of it, in per cent, that it is over.
    pub(crate) early: Option<u64>,
    /// Somebody cancels it so many seconds after it was queued.
    pub(crate) cancel: Option<u64>,
    /// GitHub calls its runner idle while it runs.
    pub(crate) called_idle: bool,
}

/// When GitHub says that a job was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Started {
    Now,
    Late(u64),
    Never,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Fault {
    /// The controller is killed at its nth call that changes something, before or after it has its effect.
    Crash { nth: u32, after: bool, new_host: bool, down: u64 },
    /// It is stopped in order and started again.
    Restart { at: u64, down: u64, new_host: bool },
    /// Another controller begins on another host, and stays.
    Second { at: u64 },
    /// The first controller can't reach GitHub, but AWS.
    Partition { at: u64, secs: u64 },
    /// GitHub fails everything.
    GithubDown { at: u64, secs: u64 },
    /// EC2 gives nothing, or one instance a launch.
    NoCapacity { at: u64, secs: u64, partial: bool },
    /// The nth launch happens, and its answer is lost.
    LaunchLost { nth: u32 },
    /// The nth launch is throttled.
    LaunchThrottled { nth: u32 },
    /// The nth instance never runs.
    NeverBoots { nth: u32 },
    /// An instance is taken away.
    Taken { at: u64 },
    /// The session is gone at GitHub.
    SessionGone { at: u64 },
    /// The queue's token expires.
    TokenExpired { at: u64 },
    /// The scale set is gone, and its runners.
    SetGone { at: u64 },
    /// The next poll is answered without a body.
    EmptyPoll { at: u64 },
    /// The next poll is never answered.
    HangingPoll { at: u64 },
    /// Counts of nothing in the next message.
    ZeroCounts { at: u64 },
    /// The nth registration happens, and its answer is lost.
    RegisterLost { nth: u32 },
    /// The nth hand-over fails, before or after it has its effect.
    HandOverFails { nth: u32, after: bool },
    /// Somebody else writes the status.
    Conflict { at: u64 },
    /// A runner that has just taken a job is missing in GitHub's next list.
    Unlisted { at: u64 },
}

impl Fault {
    /// For how long it can hold up jobs, at most.
    pub(crate) fn holds_up(&self) -> u64 {
        match self {
            // Its session has to end, and unseen launches have to show.
            Self::Crash { down, .. } | Self::Restart { down, .. } => down + 200,
            Self::Second { .. } => 60,
            // Until the session ends, and until the other one is heard again.
            Self::Partition { secs, .. } => secs + 240,
            // Polls and sessions are tried again after half a minute at most.
            Self::GithubDown { secs, .. } => secs + 120,
            // The longest pause may just have begun.
            Self::NoCapacity { secs, .. } => 2 * secs + 60,
            Self::NeverBoots { .. } => 260,
            Self::LaunchLost { .. } | Self::LaunchThrottled { .. } | Self::RegisterLost { .. } => 60,
            Self::SetGone { .. } | Self::HangingPoll { .. } | Self::Taken { .. } => 120,
            _ => 30,
        }
    }
}

impl Schedule {
    /// What follows from a seed.
    pub(crate) fn generate(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let max = rng.u32(1..=6);
        let jobs = (0..rng.u32(1..=8)).map(|_| job(&mut rng)).collect();
        let faults = (0..rng.u32(0..=4)).map(|_| fault(&mut rng)).collect();
        Self {
            seed,
            min_idle: rng.u32(0..=max.min(2)),
            max,
            linger_secs: *rng.choice(&[30, 120]).unwrap_or(&120),
            max_age_secs: *rng.choice(&[900, 86_400, 86_400, 86_400]).unwrap_or(&86_400),
            spot: rng.bool(),
            acquire: rng.u32(0..4) == 0,
            lag: *rng.choice(&[0, 5, 60, 60]).unwrap_or(&60),
            jobs,
            faults,
        }
    }

    /// Nothing happens by itself.
    pub(crate) fn quiet(max: u32) -> Self {
        Self {
            seed: 1,
            min_idle: 0,
            max,
            linger_secs: 120,
            max_age_secs: 86_400,
            spot: false,
            acquire: false,
            lag: 0,
            jobs: Vec::new(),
            faults: Vec::new(),
        }
    }

    /// The same with jobs that are queued at these moments and run for so long.
    pub(crate) fn with_jobs(mut self, jobs: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let plain = |(at, secs)| Job { at, secs, started: Started::Now, early: None, cancel: None, called_idle: false };
        self.jobs = jobs.into_iter().map(plain).collect();
        self
    }
}

fn job(rng: &mut fastrand::Rng) -> Job {
    let called_idle = rng.u32(0..20) == 0;
    let started = match rng.u32(0..8) {
        // assumption: of a runner that GitHub wrongly called idle it says soon that it started a job. Without that word
        // nobody but the machine itself knows, and the machine is ended ten minutes later.
        _ if called_idle => Started::Now,
        0 => Started::Late(rng.u64(5..300)),
        1 => Started::Never,
        _ => Started::Now,
    };
    Job {
        at: rng.u64(0..400),
        secs: if rng.bool() { rng.u64(5..60) } else { rng.u64(60..700) },
        started,
        early: (rng.u32(0..10) == 0).then(|| rng.u64(50..100)),
        cancel: (rng.u32(0..8) == 0).then(|| rng.u64(0..120)),
        called_idle,
    }
}

fn fault(rng: &mut fastrand::Rng) -> Fault {
    let at = rng.u64(0..600);
    match rng.u32(0..24) {
        0..=3 => {
            Fault::Crash { nth: rng.u32(1..30), after: rng.bool(), new_host: rng.u32(0..3) == 0, down: rng.u64(1..20) }
        }
        4 => Fault::Restart { at, down: rng.u64(1..60), new_host: rng.bool() },
        5 => Fault::Second { at },
        6 => Fault::Partition { at, secs: rng.u64(30..240) },
        7 => Fault::GithubDown { at, secs: rng.u64(10..300) },
        8 => Fault::NoCapacity { at, secs: rng.u64(30..240), partial: rng.bool() },
        9 => Fault::LaunchLost { nth: rng.u32(1..5) },
        10 => Fault::LaunchThrottled { nth: rng.u32(1..5) },
        11 | 12 => Fault::NeverBoots { nth: rng.u32(1..6) },
        13 => Fault::Taken { at },
        14 => Fault::SessionGone { at },
        15 => Fault::TokenExpired { at },
        16 => Fault::SetGone { at },
        17 => Fault::EmptyPoll { at },
        18 => Fault::HangingPoll { at },
        19 => Fault::ZeroCounts { at },
        20 => Fault::RegisterLost { nth: rng.u32(1..6) },
        21 => Fault::HandOverFails { nth: rng.u32(1..6), after: rng.bool() },
        22 => Fault::Conflict { at },
        _ => Fault::Unlisted { at },
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, min_idle, max, linger_secs, max_age_secs, spot, acquire, lag, .. } = self;
        writeln!(
            f,
            "seed {seed}: min_idle {min_idle}, max {max}, linger {linger_secs} s, max_age {max_age_secs} s, lag {lag} s"
        )?;
        writeln!(f, "  spot {spot}, jobs are acquired {acquire}")?;
        self.jobs.iter().try_for_each(|job| writeln!(f, "  {job:?}"))?;
        self.faults.iter().try_for_each(|fault| writeln!(f, "  {fault:?}"))
    }
}
