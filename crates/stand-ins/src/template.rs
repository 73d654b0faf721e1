//! As much of CloudFormation's language as our templates are written in: what a stack asks for, as plain JSON.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail, ensure};
use serde_json::{Map, Value, json};

use crate::aws::{ACCOUNT, REGION};

/// What `Ref: AWS::NoValue` becomes: its key or entry is left out.
const NO_VALUE: Value = Value::Null;

/// A template with the values it is deployed with.
#[derive(Debug, Clone)]
pub struct Template {
    stack: String,
    document: Value,
    parameters: BTreeMap<String, String>,
    outputs: BTreeMap<String, String>,
}

impl Template {
    /// Reads a template, YAML or JSON, as a stack of that name with these parameters. Those not given have their defaults.
    ///
    /// # Errors
    /// It is no template.
    pub fn new(stack: &str, text: &str, parameters: BTreeMap<String, String>) -> anyhow::Result<Self> {
        let yaml = serde_yaml_ng::from_str(text).context("read the template")?;
        let mut template = Self {
            stack: stack.to_owned(),
            document: untagged(yaml)?,
            parameters: BTreeMap::new(),
            outputs: BTreeMap::new(),
        };
        for (name, declared) in template.section("Parameters") {
            let default = declared.get("Default").and_then(|default| scalar(default).ok());
            template.parameters.extend(default.map(|default| (name.clone(), default)));
        }
        template.parameters.extend(parameters);
        Ok(template)
    }

    /// The same with the stack's outputs, which tell what the resources came to be.
    #[must_use]
    pub fn with_outputs(mut self, outputs: BTreeMap<String, String>) -> Self {
        self.outputs = outputs;
        self
    }

    /// A top-level section, in its written form: `Parameters`.
    pub fn section(&self, name: &str) -> Map<String, Value> {
        self.document.get(name).and_then(Value::as_object).cloned().unwrap_or_default()
    }

    /// The resources whose condition holds, by logical id: type and properties, all functions carried out.
    ///
    /// # Errors
    /// A function that is not known here, or does not fit.
    pub fn resources(&self) -> anyhow::Result<BTreeMap<String, (String, Value)>> {
        let mut resources = BTreeMap::new();
        for (id, resource) in self.section("Resources") {
            if let Some(condition) = resource.get("Condition").and_then(Value::as_str)
                && !self.condition(condition)?
            {
                continue;
            }
            let kind = resource.get("Type").and_then(Value::as_str).with_context(|| format!("{id} has a type"))?;
            let properties = resource.get("Properties").unwrap_or(&NO_VALUE);
            let properties = self.value(properties).with_context(|| format!("resource {id}"))?;
            resources.insert(id, (kind.to_owned(), properties));
        }
        Ok(resources)
    }

    /// The policy documents of a role: those written in it, and the policies of the template that are attached to it.
    ///
    /// # Errors
    /// There is no such role; as [`Template::resources`].
    pub fn policies(&self, role: &str) -> anyhow::Result<Vec<Value>> {
        let resources = self.resources()?;
        let (_, properties) = resources.get(role).with_context(|| format!("the template has a role {role}"))?;
        let inline = properties["Policies"].as_array().into_iter().flatten();
        let mut documents: Vec<Value> = inline.map(|policy| policy["PolicyDocument"].clone()).collect();
        let attached = properties["ManagedPolicyArns"].as_array().into_iter().flatten();
        for arn in attached.filter_map(Value::as_str) {
            // One of AWS's own is not to be found here.
            documents.extend(resources.get(arn).map(|(_, properties)| properties["PolicyDocument"].clone()));
        }
        Ok(documents)
    }

    fn condition(&self, name: &str) -> anyhow::Result<bool> {
        let conditions = self.section("Conditions");
        self.truth(conditions.get(name).with_context(|| format!("the template has a condition {name}"))?)
    }

    fn truth(&self, value: &Value) -> anyhow::Result<bool> {
        let (function, argument) = function(value).context("a condition is a function")?;
        let operands = argument.as_array().map_or(&[][..], Vec::as_slice);
        Ok(match (function, operands) {
            ("Condition", _) => self.condition(argument.as_str().unwrap_or_default())?,
            ("Fn::Equals", [one, other]) => self.value(one)? == self.value(other)?,
            ("Fn::Not", [operand]) => !self.truth(operand)?,
            ("Fn::And", operands) => {
                operands.iter().try_fold(true, |all, operand| anyhow::Ok(all & self.truth(operand)?))?
            }
            ("Fn::Or", operands) => {
                operands.iter().try_fold(false, |any, operand| anyhow::Ok(any | self.truth(operand)?))?
            }
            _ => bail!("no condition: {value}"),
        })
    }

    /// A value with all functions carried out.
    fn value(&self, value: &Value) -> anyhow::Result<Value> {
        if let Some((function, argument)) = function(value) {
            return self.call(function, argument);
        }
        Ok(match value {
            Value::Array(entries) => {
                let entries = entries.iter().map(|entry| self.value(entry)).collect::<anyhow::Result<Vec<_>>>()?;
                entries.into_iter().filter(|entry| *entry != NO_VALUE).collect()
            }
            Value::Object(fields) => {
                let mut resolved = Map::new();
                for (name, field) in fields {
                    resolved.insert(name.clone(), self.value(field)?);
                }
                resolved.retain(|_, field| *field != NO_VALUE);
                Value::Object(resolved)
            }
            plain => plain.clone(),
        })
    }

    fn call(&self, function: &str, argument: &Value) -> anyhow::Result<Value> {
        let operands = argument.as_array().map_or(&[][..], Vec::as_slice);
        match (function, operands) {
            ("Ref", _) => self.reference(argument.as_str().context("Ref names something")?),
            ("Fn::GetAtt", _) => self.attribute(argument),
            ("Fn::Sub", [text, variables]) => self.substitute(text, variables),
            ("Fn::Sub", _) => self.substitute(argument, &json!({})),
            ("Fn::If", [condition, then, otherwise]) => {
                let holds = self.condition(condition.as_str().context("If names a condition")?)?;
                self.value(if holds { then } else { otherwise })
            }
            ("Fn::Join", [delimiter, list]) => {
                let list = self.value(list)?;
                let parts = list.as_array().context("Join joins a list")?;
                let parts = parts.iter().map(scalar).collect::<anyhow::Result<Vec<_>>>()?;
                Ok(parts.join(delimiter.as_str().unwrap_or_default()).into())
            }
            ("Fn::Split", [delimiter, text]) => {
                let text = scalar(&self.value(text)?)?;
                Ok(text.split(delimiter.as_str().context("Split names a delimiter")?).collect())
            }
            ("Fn::Select", [index, list]) => {
                let (index, list) = (scalar(&self.value(index)?)?, self.value(list)?);
                Ok(list.get(index.parse::<usize>()?).context("Select chooses an entry that exists")?.clone())
            }
            ("Fn::GetAZs", _) => Ok(["a", "b", "c"].iter().map(|zone| format!("{REGION}{zone}")).collect()),
            ("Fn::Base64", _) => {
                use base64::Engine as _;
                Ok(base64::engine::general_purpose::STANDARD.encode(scalar(&self.value(argument)?)?).into())
            }
            _ => bail!("{function} is not known here: {argument}"),
        }
    }

    fn reference(&self, name: &str) -> anyhow::Result<Value> {
        let known = match name {
            "AWS::NoValue" => return Ok(NO_VALUE),
            "AWS::Region" => REGION,
            "AWS::AccountId" => ACCOUNT,
            "AWS::Partition" => "aws",
            "AWS::URLSuffix" => "amazonaws.com",
            "AWS::StackName" => self.stack.as_str(),
            _ => return self.named(name),
        };
        Ok(known.into())
    }

    fn named(&self, name: &str) -> anyhow::Result<Value> {
        if let Some(value) = self.parameters.get(name) {
            let declared = self.section("Parameters");
            let kind = declared.get(name).and_then(|declared| declared["Type"].as_str()).unwrap_or_default();
            let list = kind.starts_with("List<") || kind == "CommaDelimitedList";
            return Ok(if list { value.split(',').map(str::trim).collect() } else { value.as_str().into() });
        }
        ensure!(self.section("Resources").contains_key(name), "{name} is no parameter with a value, and no resource");
        Ok(self.output(&json!({ "Ref": name })).unwrap_or_else(|| name.into()))
    }

    /// As an output tells it, or the attribute's own name.
    fn attribute(&self, argument: &Value) -> anyhow::Result<Value> {
        let path = argument.as_array().context("GetAtt names an attribute")?;
        let path = path.iter().map(scalar).collect::<anyhow::Result<Vec<_>>>()?.join(".");
        Ok(self.output(&json!({ "Fn::GetAtt": argument })).unwrap_or_else(|| path.into()))
    }

    fn output(&self, wanted: &Value) -> Option<Value> {
        let declared = self.section("Outputs");
        let (name, _) = declared.iter().find(|(_, output)| output["Value"] == *wanted)?;
        Some(self.outputs.get(name)?.as_str().into())
    }

    fn substitute(&self, text: &Value, variables: &Value) -> anyhow::Result<Value> {
        let mut rest = text.as_str().context("Sub takes a text")?;
        let mut resolved = String::new();
        while let Some((before, after)) = rest.split_once("${") {
            let (name, after) = after.split_once('}').context("a variable in Sub ends")?;
            resolved.push_str(before);
            match (name.strip_prefix('!'), variables.get(name), name.split_once('.')) {
                (Some(literal), ..) => resolved.push_str(&format!("${{{literal}}}")),
                (None, Some(variable), _) => resolved.push_str(&scalar(&self.value(variable)?)?),
                (None, None, Some((resource, attribute))) => {
                    resolved.push_str(&scalar(&self.attribute(&json!([resource, attribute]))?)?);
                }
                (None, None, None) => resolved.push_str(&scalar(&self.reference(name)?)?),
            }
            rest = after;
        }
        resolved.push_str(rest);
        Ok(resolved.into())
    }
}

/// A function is an object with its name as the only key.
fn function(value: &Value) -> Option<(&str, &Value)> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    let (name, argument) = fields.iter().next()?;
    // The condition block of a policy's statement is called so too, and is no text.
    let known = name == "Ref" || name.starts_with("Fn::") || (name == "Condition" && argument.is_string());
    known.then_some((name.as_str(), argument))
}

fn scalar(value: &Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(truth) => Ok(truth.to_string()),
        other => bail!("a text was expected, not {other}"),
    }
}

/// The short form of functions, `!Sub x`, in the long one, `{"Fn::Sub": x}`.
fn untagged(value: serde_yaml_ng::Value) -> anyhow::Result<Value> {
    use serde_yaml_ng::Value as Yaml;
    Ok(match value {
        Yaml::Tagged(tagged) => {
            let tag = tagged.tag.to_string();
            let name = tag.trim_start_matches('!');
            let argument = untagged(tagged.value)?;
            match name {
                "Ref" | "Condition" => json!({ name: argument }),
                "GetAtt" => {
                    let path = match argument.as_str().and_then(|path| path.split_once('.')) {
                        Some((resource, attribute)) => json!([resource, attribute]),
                        None => argument,
                    };
                    json!({ "Fn::GetAtt": path })
                }
                _ => json!({ format!("Fn::{name}"): argument }),
            }
        }
        Yaml::Sequence(entries) => entries.into_iter().map(untagged).collect::<anyhow::Result<Value>>()?,
        Yaml::Mapping(fields) => {
            let mut object = Map::new();
            for (name, field) in fields {
                object.insert(name.as_str().context("a key is a text")?.to_owned(), untagged(field)?);
            }
            Value::Object(object)
        }
        plain => serde_json::to_value(plain)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
Parameters:
  Alias: { Type: String, Default: "" }
  Subnets: { Type: "List<AWS::EC2::Subnet::Id>" }
Conditions:
  HasAlias: !Not [!Equals [!Ref Alias, ""]]
  Both: !And [!Condition HasAlias, !Equals [!Ref AWS::Region, eu-central-1]]
Resources:
  Role:
    Type: AWS::IAM::Role
    Properties:
      Policies:
        - !If
          - HasAlias
          - PolicyDocument:
              Resource: !Sub "arn:${AWS::Partition}:kms:${AWS::Region}:${AWS::AccountId}:${Alias}/${!literal}"
              Condition: { StringEquals: { "kms:ResourceAliases": !Ref Alias } }
          - !Ref AWS::NoValue
  Group:
    Type: AWS::AutoScaling::AutoScalingGroup
    Condition: Both
    Properties:
      VPCZoneIdentifier: !Ref Subnets
      First: !Select [0, !Ref Subnets]
      Joined: !Join ["-", [!Ref AWS::StackName, !GetAtt Role.Arn]]
Outputs:
  RoleArn: { Value: !GetAtt Role.Arn }
"#;

    fn template(alias: &str) -> Template {
        let parameters = [("Alias", alias), ("Subnets", "subnet-1,subnet-2")];
        let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Template::new("kiln", TEXT, parameters).unwrap()
    }

    #[test]
    fn functions_are_carried_out() {
        let there = template("alias/key").with_outputs([("RoleArn".to_owned(), "arn:role".to_owned())].into());
        let resources = there.resources().unwrap();
        let group = json!({
            "VPCZoneIdentifier": ["subnet-1", "subnet-2"], "First": "subnet-1", "Joined": "kiln-arn:role",
        });
        assert_eq!(resources["Group"], ("AWS::AutoScaling::AutoScalingGroup".to_owned(), group));
        let policy = json!({
            "Resource": "arn:aws:kms:eu-central-1:000000000000:alias/key/${literal}",
            "Condition": { "StringEquals": { "kms:ResourceAliases": "alias/key" } },
        });
        assert_eq!(there.policies("Role").unwrap(), [policy]);
    }

    #[test]
    fn what_no_condition_allows_is_left_out() {
        let resources = template("").resources().unwrap();
        assert_eq!(resources.len(), 1, "{resources:?}");
        assert_eq!(resources["Role"].1, json!({ "Policies": [] }));
    }

    #[test]
    fn an_unknown_function_is_an_error() {
        let text = "Resources: { R: { Type: T, Properties: { P: !Cidr [a, 1, 2] } } }";
        let error = Template::new("s", text, BTreeMap::new()).unwrap().resources().unwrap_err();
        assert!(format!("{error:#}").contains("Fn::Cidr"), "{error:#}");
    }
}
