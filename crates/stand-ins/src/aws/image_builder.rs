//! Image Builder's REST-JSON protocol: immutable components and recipes, configurations, builds.
//!
//! Rules without a source of their own are of `botocore`'s model, `imagebuilder/2019-12-02/service-2.json`, by the name of the
//! operation or shape.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use kiln_image::components::Document;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::bake::{self, BakedImage, Baking};
use super::gateway::Call;
use super::{ACCOUNT, REGION, Shared, lock};

/// A build and what became of it.
#[derive(Debug, Clone)]
pub(super) struct Build {
    pub(super) status: &'static str,
    pub(super) reason: String,
    pub(super) failure: Option<Value>,
    pub(super) ami: Option<String>,
    /// By region.
    pub(super) copies: BTreeMap<String, String>,
    /// What CloudWatch Logs has of it.
    pub(super) log: Vec<String>,
    /// The group that it is written to.
    pub(super) log_group: String,
    /// Name and status, in order, by workflow: `BUILD`, `TEST`.
    pub(super) steps: Vec<(&'static str, String, &'static str)>,
}

#[derive(Debug, Default)]
pub(super) struct ImageBuilder {
    /// By ARN.
    components: BTreeMap<String, Value>,
    recipes: BTreeMap<String, Value>,
    configurations: BTreeMap<String, Value>,
    pub(super) builds: BTreeMap<String, Build>,
    /// Client tokens of builds.
    tokens: BTreeMap<String, String>,
    pub(super) baked: Vec<BakedImage>,
    /// Root directories by AMI.
    pub(super) roots: BTreeMap<String, PathBuf>,
    /// Public parameters with the newest base images; the emulator keeps AWS's own names to itself.
    pub(super) bases: BTreeMap<String, String>,
    pub(super) fail_step: Option<String>,
    /// When images were made.
    pub(super) made: BTreeMap<String, SystemTime>,
}

impl ImageBuilder {
    pub(super) fn images(&self) -> Vec<BakedImage> {
        self.baked.clone()
    }

    pub(super) fn replace_component(&mut self, name: &str, document: &str) {
        let part = format!(":component/{name}/");
        for (_, component) in self.components.iter_mut().filter(|(arn, _)| arn.contains(&part)) {
            component["data"] = json!(document);
        }
    }

    pub(super) fn root_of(&self, ami: &str) -> Option<PathBuf> {
        self.roots.get(ami).cloned()
    }
}

/// A refusal: status, the service's code, its message.
type Refused = (u16, &'static str, String);
type Answered = Result<Value, Refused>;

fn invalid(message: impl Into<String>) -> Refused {
    (400, "InvalidParameterValueException", message.into())
}

fn absent(what: &str, arn: &str) -> Refused {
    (404, "ResourceNotFoundException", format!("The resource with ARN '{arn}' does not exist ({what})."))
}

fn present(what: &str) -> Refused {
    (400, "ResourceAlreadyExistsException", format!("The following resource already exists: '{what}'."))
}

pub(super) async fn handle(shared: &Arc<Shared>, call: &Call) -> Response {
    let body: Value = serde_json::from_slice(&call.body).unwrap_or(Value::Null);
    let query = |name: &str| {
        let query = call.uri.query().unwrap_or_default();
        let found = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name);
        found.map(|(_, value)| value.into_owned()).unwrap_or_default()
    };
    let state = || lock(&shared.image_builder);
    let answered = match call.operation.as_str() {
        "CreateComponent" => create_component(&mut state(), &body),
        "GetComponent" => get(&state().components, &query("componentBuildVersionArn"), "component"),
        "CreateImageRecipe" => create_recipe(&mut state(), &body),
        "GetImageRecipe" => get(&state().recipes, &query("imageRecipeArn"), "imageRecipe"),
        "CreateInfrastructureConfiguration" => put(&mut state(), &body, "infrastructure", false),
        "UpdateInfrastructureConfiguration" => put(&mut state(), &body, "infrastructure", true),
        "GetInfrastructureConfiguration" => {
            get(&state().configurations, &query("infrastructureConfigurationArn"), "infrastructureConfiguration")
        }
        "CreateDistributionConfiguration" => put(&mut state(), &body, "distribution", false),
        "UpdateDistributionConfiguration" => put(&mut state(), &body, "distribution", true),
        "GetDistributionConfiguration" => {
            get(&state().configurations, &query("distributionConfigurationArn"), "distributionConfiguration")
        }
        "CreateImage" => create_image(shared, &body),
        "GetImage" => get_image(&state(), &query("imageBuildVersionArn")),
        "ListImageBuildVersions" => Ok(list_builds(&state(), body["imageVersionArn"].as_str().unwrap_or_default())),
        "ListWorkflowExecutions" => list_workflows(&state(), body["imageBuildVersionArn"].as_str().unwrap_or_default()),
        "ListWorkflowStepExecutions" => list_steps(&state(), body["workflowExecutionId"].as_str().unwrap_or_default()),
        other => Err((404, "ResourceNotFoundException", format!("the stand-in has no operation {other}"))),
    };
    match answered {
        Ok(mut value) => {
            value["requestId"] = json!("stand-in");
            axum::Json(value).into_response()
        }
        Err((status, code, message)) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
            (status, [("x-amzn-errortype", code)], axum::Json(json!({ "message": message }))).into_response()
        }
    }
}

/// A name in an ARN is in lower case, with hyphens in place of spaces and underscores. An ARN with anything else in it names
/// nothing, and is answered as one that does not exist.
///
/// source: `Filter$name` and `CreateImageRecipeRequest$name`: "names that differ only in case, spaces, or underscores count as
/// the same name"; `aws/aws-cdk`, `aws-imagebuilder-alpha/lib/image-recipe.ts`, refuses underscores for it
fn arn(kind: &str, rest: &str) -> String {
    let segment = rest.to_ascii_lowercase().replace([' ', '_'], "-");
    format!("arn:aws:imagebuilder:{REGION}:{ACCOUNT}:{kind}/{segment}")
}

/// The longest client token. Newer models allow 64 characters; 36 is what an older one did.
///
/// source: `ClientToken` in botocore 1.35.99 (36) and 1.43.11 (64)
const MOST_TOKEN: usize = 36;

fn token(body: &Value) -> Result<String, Refused> {
    let token = text(body, "clientToken")?;
    if token.len() > MOST_TOKEN {
        return Err(invalid(format!("The value supplied for parameter 'clientToken' is not valid: {token}")));
    }
    Ok(token.to_owned())
}

fn text<'a>(value: &'a Value, name: &str) -> Result<&'a str, Refused> {
    value[name]
        .as_str()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| invalid(format!("The value supplied for parameter '{name}' is not valid.")))
}

/// `[-_A-Za-z0-9 ]{3,128}` and `\d+.\d+.\d+` with nodes below 2^30.
fn versioned(body: &Value) -> Result<String, Refused> {
    let (name, version) = (text(body, "name")?, text(body, "semanticVersion")?);
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | ' ');
    if !(3..=128).contains(&name.len()) || !name.chars().all(fine) {
        return Err(invalid(format!("The value supplied for parameter 'name' is not valid: {name}")));
    }
    let nodes: Vec<Option<u32>> = version.split('.').map(|node| node.parse().ok().filter(|n| *n < 1 << 30)).collect();
    if nodes.len() != 3 || nodes.contains(&None) {
        return Err(invalid(format!("The value supplied for parameter 'semanticVersion' is not valid: {version}")));
    }
    Ok(format!("{name}/{version}"))
}

fn get(from: &BTreeMap<String, Value>, arn: &str, name: &str) -> Answered {
    let found = from.get(arn).ok_or_else(|| absent(name, arn))?;
    Ok(json!({ name: found }))
}

fn create_component(state: &mut ImageBuilder, body: &Value) -> Answered {
    token(body)?;
    if text(body, "platform")? != "Linux" {
        return Err(invalid("The value supplied for parameter 'platform' is not valid."));
    }
    let arn = format!("{}/1", arn("component", &versioned(body)?));
    if state.components.contains_key(&arn) {
        return Err(present(&arn));
    }
    Document::parse(text(body, "data")?).map_err(|problems| {
        let all: Vec<String> = problems.iter().map(ToString::to_string).collect();
        invalid(format!("The value supplied for parameter 'data' is not valid. {}", all.join("; ")))
    })?;
    let mut component = body.clone();
    component["arn"] = json!(arn);
    component["version"] = body["semanticVersion"].clone();
    state.components.insert(arn.clone(), component);
    Ok(json!({ "componentBuildVersionArn": arn, "clientToken": body["clientToken"] }))
}

fn create_recipe(state: &mut ImageBuilder, body: &Value) -> Answered {
    token(body)?;
    text(body, "parentImage")?;
    let arn = arn("image-recipe", &versioned(body)?);
    if state.recipes.contains_key(&arn) {
        return Err(present(&arn));
    }
    let used = body["components"].as_array().filter(|used| !used.is_empty());
    for configuration in used.ok_or_else(|| invalid("The value supplied for parameter 'components' is not valid."))? {
        bake::values(configuration, &document(state, text(configuration, "componentArn")?)?).map_err(invalid)?;
    }
    let mut recipe = body.clone();
    recipe["arn"] = json!(arn);
    recipe["version"] = body["semanticVersion"].clone();
    state.recipes.insert(arn.clone(), recipe);
    Ok(json!({ "imageRecipeArn": arn, "clientToken": body["clientToken"] }))
}

fn document(state: &ImageBuilder, arn: &str) -> Result<Document, Refused> {
    let component = state.components.get(arn).ok_or_else(|| absent("component", arn))?;
    Document::parse(component["data"].as_str().unwrap_or_default()).map_err(|_| invalid("a component's document"))
}

fn put(state: &mut ImageBuilder, body: &Value, kind: &str, update: bool) -> Answered {
    token(body)?;
    let name = format!("{kind}ConfigurationArn");
    let arn = if update {
        let arn = text(body, &name)?.to_owned();
        if !state.configurations.contains_key(&arn) {
            return Err(absent(kind, &arn));
        }
        arn
    } else {
        let arn = arn(&format!("{kind}-configuration"), text(body, "name")?);
        if state.configurations.contains_key(&arn) {
            return Err(present(&arn));
        }
        arn
    };
    if kind == "infrastructure" {
        text(body, "instanceProfileName")?;
        require_tags(&body["resourceTags"])?;
    } else {
        for distribution in body["distributions"].as_array().into_iter().flatten() {
            text(distribution, "region")?;
            let ami = distribution["amiDistributionConfiguration"]["name"].as_str().unwrap_or_default();
            if !ami.contains("{{ imagebuilder:buildDate }}") {
                return Err(invalid("The AMI name must contain {{ imagebuilder:buildDate }}."));
            }
        }
    }
    let mut configuration = body.clone();
    configuration["arn"] = json!(arn);
    if update {
        configuration["name"] = state.configurations[&arn]["name"].clone();
    }
    state.configurations.insert(arn.clone(), configuration);
    Ok(json!({ name: arn, "clientToken": body["clientToken"] }))
}

/// source: `ResourceTagMap`: 1 to 30 of them
fn require_tags(tags: &Value) -> Result<(), Refused> {
    match tags.as_object().map(serde_json::Map::len) {
        None | Some(1..=30) => Ok(()),
        Some(count) => {
            Err(invalid(format!("The value supplied for parameter 'resourceTags' is not valid: {count} tags")))
        }
    }
}

fn create_image(shared: &Arc<Shared>, body: &Value) -> Answered {
    let mut state = lock(&shared.image_builder);
    let token = token(body)?;
    if let Some(arn) = state.tokens.get(&token) {
        return Ok(json!({ "imageBuildVersionArn": arn, "clientToken": token }));
    }
    let recipe_arn = text(body, "imageRecipeArn")?;
    let recipe = state.recipes.get(recipe_arn).ok_or_else(|| absent("recipe", recipe_arn))?.clone();
    for name in ["infrastructureConfigurationArn", "distributionConfigurationArn"] {
        let arn = text(body, name)?;
        if !state.configurations.contains_key(arn) {
            return Err(absent(name, arn));
        }
    }
    let components = recipe["components"].as_array().into_iter().flatten().map(|configuration| {
        let document = document(&state, text(configuration, "componentArn")?)?;
        let values = bake::values(configuration, &document).map_err(invalid)?;
        Ok((document, values))
    });
    let components = components.collect::<Result<Vec<_>, Refused>>()?;
    let distribution = &state.configurations[text(body, "distributionConfigurationArn")?];
    let distributions = distribution["distributions"].as_array().cloned().unwrap_or_default();
    let volume = &recipe["blockDeviceMappings"][0]["ebs"];
    let kms_key = volume["kmsKeyId"].as_str().map(str::to_owned);
    let image = recipe_arn.replace(":image-recipe/", ":image/");
    let number = state.builds.keys().filter(|arn| arn.starts_with(&format!("{image}/"))).count() + 1;
    let arn = format!("{image}/{number}");
    // source: `ImageLoggingConfiguration$logGroupName`
    let name = text(&recipe, "name")?;
    let log_group = body["loggingConfiguration"]["logGroupName"].as_str().map(str::to_owned);
    let infrastructure = state.configurations[text(body, "infrastructureConfigurationArn")?].clone();
    let build = Build {
        log_group: log_group.unwrap_or_else(|| format!("/aws/imagebuilder/{name}")),
        status: "PENDING",
        reason: String::new(),
        failure: None,
        ami: None,
        copies: BTreeMap::new(),
        log: Vec::new(),
        steps: Vec::new(),
    };
    state.builds.insert(arn.clone(), build);
    state.tokens.insert(token.clone(), arn.clone());
    let fail_step = state.fail_step.take();
    drop(state);
    let baking = Baking { arn: arn.clone(), components, distributions, kms_key, infrastructure, fail_step };
    tokio::spawn(bake::run(Arc::clone(shared), baking));
    Ok(json!({ "imageBuildVersionArn": arn, "clientToken": token }))
}

fn get_image(state: &ImageBuilder, arn: &str) -> Answered {
    let build = state.builds.get(arn).ok_or_else(|| absent("image", arn))?;
    let mut status = json!({ "status": build.status });
    if !build.reason.is_empty() {
        status["reason"] = json!(build.reason);
    }
    if let Some(failure) = &build.failure {
        status["failureContext"] = failure.clone();
    }
    let mut image = json!({ "arn": arn, "state": status, "outputResources": { "amis": [] } });
    if let Some(ami) = &build.ami {
        let here = json!({ "region": REGION, "image": ami, "accountId": ACCOUNT });
        let copy = |(region, ami)| json!({ "region": region, "image": ami, "accountId": ACCOUNT });
        image["outputResources"]["amis"] = std::iter::once(here).chain(build.copies.iter().map(copy)).collect();
    }
    Ok(json!({ "image": image }))
}

fn list_builds(state: &ImageBuilder, version: &str) -> Value {
    let of = |arn: &&String| arn.starts_with(&format!("{version}/"));
    let builds: Vec<Value> = state.builds.keys().filter(of).map(|arn| json!({ "arn": arn })).collect();
    json!({ "imageSummaryList": builds })
}

/// What CloudWatch Logs answers of a build: its log is the stream `VERSION/BUILD` in its group.
///
/// source: <https://docs.aws.amazon.com/imagebuilder/latest/userguide/monitor-cwlogs.html>
pub(super) fn log_events(shared: &Shared, call: &Call) -> Option<Response> {
    let body: Value = serde_json::from_slice(&call.body).ok()?;
    let group = body["logGroupName"].as_str().filter(|group| group.starts_with("/aws/imagebuilder/"))?;
    let stream = body["logStreamName"].as_str()?;
    let state = lock(&shared.image_builder);
    let mut builds = state.builds.iter();
    let its = |(arn, build): &(&String, &Build)| build.log_group == group && arn.ends_with(&format!("/{stream}"));
    let Some((_, build)) = builds.find(its) else {
        let refusal =
            json!({ "__type": "ResourceNotFoundException", "message": "The specified log stream does not exist." });
        return Some((StatusCode::BAD_REQUEST, axum::Json(refusal)).into_response());
    };
    let limit = body["limit"].as_u64().and_then(|limit| usize::try_from(limit).ok()).unwrap_or(10_000);
    let from = if body["startFromHead"] == json!(true) { 0 } else { build.log.len().saturating_sub(limit) };
    let events: Vec<Value> =
        build.log.iter().skip(from).take(limit).map(|line| json!({ "timestamp": 0, "message": line })).collect();
    Some(axum::Json(json!({ "events": events })).into_response())
}

/// The build workflow's first step.
///
/// source: <https://docs.aws.amazon.com/imagebuilder/latest/userguide/wfdoc-step-actions.html>, `LaunchInstance`
pub(super) const LAUNCH_STEP: &str = "LaunchBuildInstance";

/// The instance of every build.
const INSTANCE: &str = "i-0b0b0b0b0b0b0b0b0";

/// The workflows of a build, in their order.
const WORKFLOWS: [&str; 2] = ["BUILD", "TEST"];

/// `wf-` and a UUID, as the service has them.
fn workflow_id(arn: &str, kind: &str) -> String {
    let digest = Sha256::digest(format!("{arn} {kind}"));
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let [a, b, c, d, e] = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
    format!("wf-{a}-{b}-{c}-{d}-{e}")
}

fn list_workflows(state: &ImageBuilder, arn: &str) -> Answered {
    let build = state.builds.get(arn).ok_or_else(|| absent("image", arn))?;
    let kinds = WORKFLOWS.into_iter().filter(|kind| build.steps.iter().any(|(of, _, _)| of == kind));
    let workflows: Vec<Value> =
        kinds.map(|kind| json!({ "workflowExecutionId": workflow_id(arn, kind), "type": kind })).collect();
    Ok(json!({ "workflowExecutions": workflows, "imageBuildVersionArn": arn }))
}

fn list_steps(state: &ImageBuilder, id: &str) -> Answered {
    let mut all = state.builds.iter().flat_map(|(arn, build)| WORKFLOWS.map(|kind| (arn, kind, build)));
    let (_, kind, build) =
        all.find(|(arn, kind, _)| workflow_id(arn, kind) == id).ok_or_else(|| absent("workflow", id))?;
    let own = build.steps.iter().enumerate().filter(|(_, (of, _, _))| *of == kind);
    let steps: Vec<Value> = own
        .map(|(index, (_, name, status))| {
            let start = format!("2026-01-01T00:{:02}:{:02}Z", index / 60, index % 60);
            let mut step =
                json!({ "stepExecutionId": format!("{id}#{index}"), "name": name, "status": status, "startTime": start });
            // source: `WorkflowStepMetadata$outputs`: "a step that launches an instance outputs the instance ID"
            // assumption: under the name that workflow documents refer to it by, `instanceId`.
            if name == LAUNCH_STEP && *status == "COMPLETED" {
                step["outputs"] = json!(json!({ "instanceId": INSTANCE }).to_string());
            }
            if *status == "FAILED" {
                step["message"] = json!(build.reason);
            }
            step
        })
        .collect();
    Ok(json!({ "steps": steps, "workflowExecutionId": id }))
}
