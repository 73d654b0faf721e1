//! As much of CloudFormation's language as tells what a stack wants of its Auto Scaling group: the emulator drops a
//! group's mixed-instances policy and its inline lifecycle hooks.

use std::collections::BTreeMap;

use serde_yaml_ng::Value;

/// A stack's template with the values it was deployed with.
#[derive(Debug)]
pub(super) struct Template {
    document: Value,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) outputs: BTreeMap<String, String>,
}

impl Template {
    pub(super) fn new(
        text: &str,
        parameters: BTreeMap<String, String>,
        outputs: BTreeMap<String, String>,
    ) -> anyhow::Result<Self> {
        Ok(Self { document: serde_yaml_ng::from_str(text)?, parameters, outputs })
    }

    /// The properties of its Auto Scaling group.
    pub(super) fn group(&self) -> Option<&Value> {
        let resources = self.document.get("Resources")?.as_mapping()?;
        let group = resources.values().find(|resource| {
            resource.get("Type").and_then(Value::as_str) == Some("AWS::AutoScaling::AutoScalingGroup")
        })?;
        group.get("Properties")
    }

    /// A value as text: literals, `Ref`, `GetAtt`, `If`. An attribute of a resource is found among the outputs that name it.
    pub(super) fn text(&self, value: &Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            Value::Tagged(tagged) => match tagged.tag.to_string().as_str() {
                "!Ref" => {
                    let name = tagged.value.as_str()?;
                    self.parameters.get(name).cloned().or_else(|| self.output_of("!Ref", &tagged.value))
                }
                "!GetAtt" => self.output_of("!GetAtt", &tagged.value),
                "!If" => {
                    let branches = tagged.value.as_sequence()?;
                    let chosen = if self.holds(branches.first()?.as_str()?)? { 1 } else { 2 };
                    self.text(branches.get(chosen)?)
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn output_of(&self, tag: &str, wanted: &Value) -> Option<String> {
        let outputs = self.document.get("Outputs")?.as_mapping()?;
        let (name, _) = outputs.iter().find(|(_, output)| match output.get("Value") {
            Some(Value::Tagged(tagged)) => tagged.tag == tag && tagged.value == *wanted,
            _ => false,
        })?;
        self.outputs.get(name.as_str()?).cloned()
    }

    fn holds(&self, condition: &str) -> Option<bool> {
        self.truth(self.document.get("Conditions")?.get(condition)?)
    }

    fn truth(&self, value: &Value) -> Option<bool> {
        let Value::Tagged(tagged) = value else { return None };
        let operands = tagged.value.as_sequence()?;
        match tagged.tag.to_string().as_str() {
            "!Equals" => Some(self.text(operands.first()?)? == self.text(operands.get(1)?)?),
            "!Not" => Some(!self.truth(operands.first()?)?),
            _ => None,
        }
    }
}
