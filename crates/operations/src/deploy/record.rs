//! Which images a fleet serves and served: the record that makes a way back.
//!
//! Three parameters a fleet, each an AMI's id. `current` is written last of all, once the runners are online; `former` is
//! what it held before; `rejected` is an image that a rollback went away from, and that no pipeline rolls out again until
//! somebody asks for it.

use kiln_config::config::{Config, Fleet};
use kiln_config::model::{AmiId, FleetName};

use super::Goal;
use crate::code::Code;
use crate::error::{Error, Result};
use crate::ports::Images;

/// What is recorded of a fleet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Proved, and not left since.
    pub current: Option<AmiId>,
    /// The one before it.
    pub former: Option<AmiId>,
    /// Rolled back from.
    pub rejected: Option<AmiId>,
}

/// Where a run is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aim {
    /// The image.
    pub ami: AmiId,
    /// To be rejected first of all, so that an interrupted rollback goes on as one.
    pub reject: Option<AmiId>,
    /// What is rejected is to be so no longer.
    pub accept: bool,
    /// The baked image is not rolled out, because it is this rejected one.
    pub kept_from: Option<AmiId>,
}

impl Record {
    /// What is recorded of a fleet now.
    ///
    /// # Errors
    /// What AWS answers.
    pub async fn read(config: &Config, fleet: &FleetName, cloud: &impl Images) -> Result<Self> {
        let read = async |which| cloud.recorded(&config.fleet_parameter(fleet, which)).await;
        Ok(Self { current: read("current").await?, former: read("former").await?, rejected: read("rejected").await? })
    }

    /// Where to go: `baked` is the newest image, `stack` the one that the stack asks for, if there is a stack.
    ///
    /// # Errors
    /// [`crate::Kind::Precondition`] when there is no image to go back to.
    pub fn aim(&self, goal: Goal, baked: &AmiId, stack: Option<&AmiId>) -> Result<Aim> {
        let rejected = self.rejected.as_ref();
        // The one that serves comes before a record that was written for another.
        let good = || [stack, self.current.as_ref(), self.former.as_ref()].into_iter().flatten();
        let to = |ami: &AmiId| Aim { ami: ami.clone(), reject: None, accept: false, kept_from: None };
        match goal {
            Goal::Baked if rejected == Some(baked) => match good().find(|ami| *ami != baked) {
                Some(last) => Ok(Aim { kept_from: Some(baked.clone()), ..to(last) }),
                None => Err(nothing_before(baked)),
            },
            // What was rejected is history as soon as the fleet moves on, or a rollback from here would take it for its own.
            Goal::Baked | Goal::Again => Ok(Aim { accept: rejected.is_some(), ..to(baked) }),
            Goal::Back => match (rejected, stack) {
                (_, None) => Err(nothing_before(baked)),
                // One step back, however often it is asked for.
                (Some(bad), Some(_)) => match good().find(|ami| *ami != bad) {
                    Some(last) => Ok(to(last)),
                    None => Err(nothing_before(bad)),
                },
                (None, Some(now)) => match good().find(|ami| *ami != now) {
                    Some(last) => Ok(Aim { reject: Some(now.clone()), ..to(last) }),
                    None => Err(nothing_before(now)),
                },
            },
        }
    }
}

fn nothing_before(ami: &AmiId) -> Error {
    Error::new(Code::NoPreviousImage, format!("no image is recorded that served well before {ami}"))
        .hint("change kiln.toml back to what is wanted, then `cargo xtask ami` and `cargo xtask deploy`")
}

/// Records an image as the one that serves, once it was seen to. Nothing is written twice over.
pub(super) async fn mark(config: &Config, fleet: &Fleet, ami: &AmiId, cloud: &impl Images) -> Result<()> {
    let name = |which| config.fleet_parameter(&fleet.name, which);
    let record = Record::read(config, &fleet.name, cloud).await?;
    match &record.current {
        Some(current) if current == ami => return Ok(()),
        Some(current) if record.former.as_ref() != Some(current) => cloud.record(&name("former"), current).await?,
        _ => {}
    }
    cloud.record(&name("current"), ami).await?;
    Ok(())
}

pub(super) async fn reject(config: &Config, fleet: &Fleet, ami: &AmiId, cloud: &impl Images) -> Result<()> {
    Ok(cloud.record(&config.fleet_parameter(&fleet.name, "rejected"), ami).await?)
}

/// Forgets all that is recorded of a fleet.
pub(crate) async fn forget(config: &Config, fleet: &FleetName, cloud: &impl Images) -> Result<()> {
    for which in ["current", "former", "rejected"] {
        cloud.forget(&config.fleet_parameter(fleet, which)).await?;
    }
    Ok(())
}

/// Takes a rejection back.
pub(super) async fn accept(config: &Config, fleet: &Fleet, cloud: &impl Images) -> Result<()> {
    Ok(cloud.forget(&config.fleet_parameter(&fleet.name, "rejected")).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ami(letter: char) -> AmiId {
        format!("ami-0000000{letter}").parse().unwrap()
    }

    fn record(current: Option<char>, former: Option<char>, rejected: Option<char>) -> Record {
        let [current, former, rejected] = [current, former, rejected].map(|letter| letter.map(ami));
        Record { current, former, rejected }
    }

    /// Where a run goes: the image, and what it rejects first.
    fn aim(record: &Record, goal: Goal, baked: char, stack: char) -> (AmiId, Option<AmiId>) {
        let aim = record.aim(goal, &ami(baked), Some(&ami(stack))).unwrap();
        (aim.ami, aim.reject)
    }

    #[test]
    fn a_rollback_goes_one_step_back_however_often_it_is_run() {
        // b serves well, a did before: back to a, and b is rejected first of all.
        let before = record(Some('b'), Some('a'), None);
        assert_eq!(aim(&before, Goal::Back, 'b', 'b'), (ami('a'), Some(ami('b'))));
        // Interrupted after the rejection; after the stack's update; between the two marks; done.
        for (record, stack) in [
            (record(Some('b'), Some('a'), Some('b')), 'b'),
            (record(Some('b'), Some('a'), Some('b')), 'a'),
            (record(Some('b'), Some('b'), Some('b')), 'a'),
            (record(Some('a'), Some('b'), Some('b')), 'a'),
        ] {
            for goal in [Goal::Back, Goal::Baked] {
                assert_eq!(
                    aim(&record, goal, 'b', stack),
                    (ami('a'), None),
                    "{goal:?} with {record:?}, stack at {stack}"
                );
            }
        }
    }

    #[test]
    fn a_roll_out_that_failed_half_way_is_left_for_what_is_marked() {
        let half = record(Some('b'), Some('a'), None);
        assert_eq!(aim(&half, Goal::Back, 'c', 'c'), (ami('b'), Some(ami('c'))));
        let back = record(Some('b'), Some('a'), Some('c'));
        assert_eq!(aim(&back, Goal::Back, 'c', 'b'), (ami('b'), None), "not one more step back");
    }

    #[test]
    fn a_rejected_image_is_rolled_out_only_when_asked_for() {
        let back = record(Some('a'), Some('b'), Some('b'));
        let held = back.aim(Goal::Baked, &ami('b'), Some(&ami('a'))).unwrap();
        assert_eq!((held.ami, held.kept_from), (ami('a'), Some(ami('b'))));
        let again = back.aim(Goal::Again, &ami('b'), Some(&ami('a'))).unwrap();
        assert_eq!((again.ami, again.accept), (ami('b'), true));
        assert_eq!(aim(&back, Goal::Baked, 'c', 'a'), (ami('c'), None), "another image is not kept from");
    }

    #[test]
    fn without_an_earlier_image_there_is_no_way_back() {
        for (record, stack) in [(record(Some('a'), None, None), Some('a')), (record(None, None, None), None)] {
            let error = record.aim(Goal::Back, &ami('a'), stack.map(ami).as_ref()).unwrap_err();
            assert_eq!(error.code, Code::NoPreviousImage);
        }
    }
}
