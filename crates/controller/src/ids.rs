//! Names and numbers of things, each of a type of its own.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! text {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// From its text.
            pub fn new(text: impl Into<String>) -> Self {
                Self(text.into())
            }

            /// Its text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! number {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub i64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

text!(
    /// A fleet's name in kiln.toml.
    FleetName
);
text!(
    /// An instance of EC2: `i-…`.
    InstanceId
);
text!(
    /// A runner's name at GitHub: the fleet and the instance.
    RunnerName
);
text!(
    /// A session on a scale set's queue.
    SessionId
);
text!(
    /// A job of GitHub's: a GUID.
    JobId
);
text!(
    /// Which launch an instance came from: EC2's client token, and the tag `kiln:launch`.
    LaunchToken
);
text!(
    /// Which controller this is: one per host, kept beside the launch intents.
    ControllerId
);
number!(
    /// A scale set.
    ScaleSetId
);
number!(
    /// A registered runner.
    RunnerId
);
number!(
    /// A message in a queue.
    MessageId
);
number!(
    /// A job that may be acquired; 0 where GitHub assigns jobs by itself.
    RequestId
);

/// GitHub's limit for a runner's name.
///
/// assumption: 64 characters, as `config.sh` refuses longer ones; nothing published says so for scale sets.
const LONGEST_NAME: usize = 64;

impl RunnerName {
    /// The name of an instance's runner. A fleet's name is cut where both together are too long.
    pub fn of(fleet: &FleetName, instance: &InstanceId) -> Self {
        let room = LONGEST_NAME.saturating_sub(instance.as_str().len() + 1);
        let fleet: String = fleet.as_str().chars().take(room).collect();
        Self(format!("{fleet}-{instance}"))
    }

    /// The instance that a runner of this fleet belongs to; `None` for others' runners.
    pub fn instance(&self, fleet: &FleetName) -> Option<InstanceId> {
        let (_, id) = self.0.rsplit_once("-i-")?;
        let instance = InstanceId::new(format!("i-{id}"));
        (Self::of(fleet, &instance) == *self).then_some(instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_has_its_instance_in_its_name() {
        let fleet = FleetName::new("linux-i-2");
        let instance = InstanceId::new("i-0123456789abcdef0");
        let name = RunnerName::of(&fleet, &instance);
        assert_eq!(name.as_str(), "linux-i-2-i-0123456789abcdef0");
        assert_eq!(name.instance(&fleet), Some(instance));
        assert_eq!(name.instance(&FleetName::new("linux")), None, "another fleet's");
        assert_eq!(RunnerName::new("somebody").instance(&fleet), None);
    }

    #[test]
    fn a_long_fleet_name_is_cut() {
        let fleet = FleetName::new("f".repeat(80));
        let instance = InstanceId::new("i-0123456789abcdef0");
        let name = RunnerName::of(&fleet, &instance);
        assert_eq!(name.as_str().len(), LONGEST_NAME);
        assert_eq!(name.instance(&fleet), Some(instance));
    }
}
