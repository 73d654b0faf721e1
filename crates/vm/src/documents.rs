//! A small executor of component documents: what AWSTOE is on Image Builder's machines.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use kiln_image::components::{Action, COMPONENTS, Document, Loop, LoopOver, OnFailure, PhaseName, Step};
use serde_yaml_ng::Value;
use sha2::{Digest as _, Sha256};

use super::machine::Machine;
use super::sandbox::{Ended, Sandbox};
use kiln_stand_ins::aws::filled;

/// Parameters by their names.
pub(super) type Values = BTreeMap<String, String>;

/// A component document and what it is told.
#[derive(Debug)]
pub(super) struct Component {
    /// The document.
    pub(super) document: Document,
    /// As it is written.
    pub(super) text: &'static str,
    /// A value for each of its parameters.
    pub(super) values: Values,
}

impl Component {
    /// Does it change the machine, rather than lay files down in it?
    pub(super) fn needs_a_machine(&self) -> bool {
        !self.document.lays_files_down_only()
    }
}

/// The documents of `ami/components`, in the order of a recipe.
///
/// # Errors
/// One of them is wrong, or has a parameter for which there is no value.
pub(super) fn components(given: &Values) -> anyhow::Result<Vec<Component>> {
    COMPONENTS.iter().map(|(name, text)| component(name, text, given)).collect()
}

fn component(name: &str, text: &'static str, given: &Values) -> anyhow::Result<Component> {
    let document = Document::parse(text).map_err(|problems| {
        anyhow::anyhow!("component {name}: {}", problems.first().map_or_else(String::new, ToString::to_string))
    })?;
    let value = |(parameter, settings): (&String, &kiln_image::components::Parameter)| {
        let value = given.get(parameter).or(settings.default.as_ref());
        let value =
            value.with_context(|| format!("component {name}: there is no value for its parameter {parameter}"))?;
        Ok((parameter.clone(), value.clone()))
    };
    let values = document.parameters.iter().map(value).collect::<anyhow::Result<_>>()?;
    Ok(Component { document, text, values })
}

/// Where steps are executed.
#[derive(Debug)]
pub(super) enum Place<'a> {
    /// In a root that becomes an image.
    Root(&'a Sandbox),
    /// On a machine started from the image.
    Machine(&'a Machine),
}

/// What the outside gives to the executor.
#[derive(Debug)]
pub(super) struct Executor<'a> {
    /// Objects in S3, by their addresses.
    pub(super) objects: &'a BTreeMap<String, Vec<u8>>,
    /// Where what is done is told.
    pub(super) say: fn(&str),
}

impl Executor<'_> {
    /// Runs a phase of one component.
    ///
    /// # Errors
    /// The first step that fails, with its name and the end of what it said.
    pub(super) async fn run(&self, component: &Component, phase: PhaseName, place: &Place<'_>) -> anyhow::Result<()> {
        let phases = component.document.phases.iter().filter(|known| known.name == phase);
        for step in phases.flat_map(|phase| &phase.steps) {
            let name = format!("{phase}/{}/{}", component.document.name, step.name);
            let done = self.step(step, &component.values, place).await;
            match done {
                Ok(()) => (self.say)(&format!("   {name}")),
                Err(error) if step.on_failure == OnFailure::Ignore => {
                    (self.say)(&format!("   {name} failed, which it may: {error:#}"));
                }
                Err(error) => return Err(error.context(format!("step {name}"))),
            }
        }
        Ok(())
    }

    async fn step(&self, step: &Step, values: &Values, place: &Place<'_>) -> anyhow::Result<()> {
        for values in turns(step.r#loop.as_ref(), values) {
            let mut attempt = 1;
            while let Err(error) = self.action(step, &values, place).await {
                if attempt >= step.max_attempts {
                    return Err(error);
                }
                attempt += 1;
            }
        }
        Ok(())
    }

    async fn action(&self, step: &Step, values: &Values, place: &Place<'_>) -> anyhow::Result<()> {
        let bound = Duration::from_secs(step.timeout_seconds.into());
        let inputs = || step.inputs.as_sequence().into_iter().flatten();
        match (step.action, place) {
            (Action::ExecuteBash, _) => {
                for command in step.inputs.get("commands").and_then(Value::as_sequence).into_iter().flatten() {
                    let script = filled(command.as_str().unwrap_or_default(), values);
                    let ended = match place {
                        Place::Root(sandbox) => sandbox.bash(&script, bound).await?,
                        Place::Machine(machine) => machine.bash(&script, bound).await?,
                    };
                    self.hear(ended)?;
                }
            }
            (Action::S3Download, Place::Root(sandbox)) => {
                for input in inputs() {
                    let source = text(input, "source", values)?;
                    let bytes = self.objects.get(&source).with_context(|| format!("there is no {source}"))?;
                    sandbox.write(&text(input, "destination", values)?, bytes).await?;
                }
            }
            (Action::WebDownload, Place::Root(sandbox)) => {
                for input in inputs() {
                    let bytes = download(input, values, bound).await?;
                    sandbox.write(&text(input, "destination", values)?, &bytes).await?;
                }
            }
            (Action::CreateFile, Place::Root(sandbox)) => {
                for input in inputs() {
                    create(sandbox, input, values).await?;
                }
            }
            (Action::UpdateOs, Place::Root(sandbox)) => {
                self.hear(sandbox.bash("apt-get --quiet update && apt-get --assume-yes upgrade", bound).await?)?;
            }
            // Nothing reads them again: that they are there is all there is to see.
            (Action::S3Upload, Place::Root(sandbox)) => {
                for input in inputs() {
                    let test = format!("[[ -e '{}' ]]", text(input, "source", values)?);
                    sandbox.bash(&test, bound).await?.success()?;
                }
            }
            (action, _) => bail!("this executor has no {action} here"),
        }
        Ok(())
    }

    /// What a stand-in says of itself is passed on.
    fn hear(&self, ended: Ended) -> anyhow::Result<()> {
        for line in ended.success()?.lines().filter(|line| line.starts_with("stand-in: ")) {
            (self.say)(&format!("     {line}"));
        }
        Ok(())
    }
}

/// The values of each turn of a step's loop; without one there is one turn.
fn turns(r#loop: Option<&Loop>, values: &Values) -> Vec<Values> {
    let Some(Loop { name, over }) = r#loop else { return vec![values.clone()] };
    let over: Vec<String> = match over {
        LoopOver::For { start, end, update_by } => {
            let goes_on = |turn: &i64| if *update_by > 0 { turn <= end } else { turn >= end };
            std::iter::successors(Some(*start), |turn| turn.checked_add(*update_by))
                .take_while(goes_on)
                .map(|turn| turn.to_string())
                .collect()
        }
        LoopOver::Each(list) => list.iter().map(|item| filled(item, values)).collect(),
        LoopOver::Split { list, delimiter } => filled(list, values).split(delimiter).map(str::to_owned).collect(),
    };
    let turn = |(index, value): (usize, String)| {
        let mut values = values.clone();
        values.insert(format!("{name}.index"), index.to_string());
        values.insert(format!("{name}.value"), value);
        values
    };
    over.into_iter().enumerate().map(turn).collect()
}

fn text(input: &Value, name: &str, values: &Values) -> anyhow::Result<String> {
    let text = input.get(name).and_then(Value::as_str).with_context(|| format!("the step has no input {name}"))?;
    Ok(filled(text, values))
}

async fn download(input: &Value, values: &Values, bound: Duration) -> anyhow::Result<Vec<u8>> {
    let source = text(input, "source", values)?;
    let fetch = async { anyhow::Ok(reqwest::get(&source).await?.error_for_status()?.bytes().await?) };
    let bytes = tokio::time::timeout(bound, fetch).await.with_context(|| format!("download {source}"))??;
    let (algorithm, wanted) = (text(input, "algorithm", values)?, text(input, "checksum", values)?);
    ensure!(algorithm == "SHA256", "this executor has no {algorithm}");
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(found == wanted, "the SHA-256 of {source} is {found}, not {wanted}");
    Ok(bytes.to_vec())
}

async fn create(sandbox: &Sandbox, input: &Value, values: &Values) -> anyhow::Result<()> {
    /// Two programs that change an inode.
    const BOUND: Duration = Duration::from_secs(10);
    let given = |name| input.get(name).and_then(Value::as_str).map(|text| filled(text, values));
    if let Some(encoding) = given("encoding").filter(|encoding| !encoding.eq_ignore_ascii_case("utf-8")) {
        bail!("this executor writes no {encoding}");
    }
    let path = text(input, "path", values)?;
    sandbox.write(&path, given("content").unwrap_or_default().as_bytes()).await?;
    for (program, value) in [("chown", given("owner")), ("chgrp", given("group")), ("chmod", given("permissions"))] {
        if let Some(value) = value {
            sandbox.bash(&format!("{program} '{value}' '{path}'"), BOUND).await?.success()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Values {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// A value for whatever the committed documents declare without a default.
    fn all_given() -> Values {
        let documents = COMPONENTS.iter().map(|(_, text)| Document::parse(text).unwrap());
        documents.flat_map(|document| document.parameters.into_keys().map(|name| (name, "x".to_owned()))).collect()
    }

    #[test]
    fn every_parameter_needs_a_value() {
        assert!(components(&all_given()).is_ok());
        let error = components(&Values::new()).unwrap_err().to_string();
        assert!(error.contains("there is no value for its parameter"), "{error}");
    }

    /// Whoever adds an action to a document hears here that the executor lacks it, and not after minutes of baking.
    #[test]
    fn the_committed_documents_use_only_actions_that_are_executed() {
        for component in components(&all_given()).unwrap() {
            for phase in &component.document.phases {
                for step in &phase.steps {
                    let known = match (step.action, phase.name) {
                        (Action::ExecuteBash, _) => true,
                        (Action::Reboot | Action::Assert, _) => false,
                        (_, phase) => phase != PhaseName::Test,
                    };
                    assert!(known, "{}: {} in {}", component.document.name, step.action, phase.name);
                }
            }
        }
    }

    #[test]
    fn a_loop_has_a_turn_for_each_value() {
        let seen = |over| {
            let r#loop = Loop { name: "node".to_owned(), over };
            let turns = turns(Some(&r#loop), &values(&[("Majors", "20,24")]));
            turns.iter().map(|turn| filled("{{ node.index }}={{ node.value }}", turn)).collect::<Vec<_>>()
        };
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect();
        assert_eq!(seen(LoopOver::Each(list(&["a", "{{ Majors }}"]))), ["0=a", "1=20,24"]);
        let split = LoopOver::Split { list: "{{ Majors }}".to_owned(), delimiter: ",".to_owned() };
        assert_eq!(seen(split), ["0=20", "1=24"]);
        assert_eq!(seen(LoopOver::For { start: 5, end: 1, update_by: -2 }), ["0=5", "1=3", "2=1"]);
        assert_eq!(turns(None, &Values::new()).len(), 1);
    }
}
