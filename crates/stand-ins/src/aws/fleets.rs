//! AWS as on-demand fleets see it: EC2 Fleet, the bucket with the hand-over objects, and STS. Without the emulator, whose
//! CreateFleet is always fulfilled and knows no token, and whose bucket says 404 to everybody.
//!
//! Whoever asks is known by the session token of the metadata service that gave the credentials: the controller's instance may
//! do what its role may, and every other one has the fleet's instance role.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request as HttpRequest, State as Extract};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::ec2::{Answered, answer};
use super::gateway::{self, Call, Refusal};
use super::imds::instance_of;
use super::lock;

/// The bucket, the roles, and which instance is the controller's.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// The bucket's name.
    pub bucket: String,
    /// The unique id of the runners' role.
    pub role_id: String,
    /// The controller's instance.
    pub controller: String,
}

/// An instance that a fleet launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetInstance {
    /// Its id.
    pub id: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its type and subnet.
    pub pool: (String, String),
    /// `spot` or `on-demand`.
    pub market: String,
    /// It runs; otherwise it is terminated.
    pub alive: bool,
}

/// What a pool has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// How many instances it gives from now on.
    pub left: u32,
    /// What it says when it gives no more, such as `InsufficientInstanceCapacity`.
    pub code: &'static str,
}

/// A running stand-in. Dropping it ends it.
#[derive(Debug)]
pub struct FleetAws {
    url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    options: FleetOptions,
    ec2: Mutex<Ec2>,
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    refusals: Mutex<Vec<Refusal>>,
    calls: Mutex<Vec<(String, String)>>,
}

#[derive(Debug, Default)]
struct Ec2 {
    instances: Vec<Launched>,
    pools: BTreeMap<(String, String), Pool>,
    /// By token: what was asked, and what was answered.
    launches: BTreeMap<String, (String, String)>,
    lag: Duration,
    lost_answers: u32,
    most_alive: usize,
}

#[derive(Debug)]
struct Launched {
    shown: FleetInstance,
    version: String,
    launched: SystemTime,
    listed_from: Instant,
}

impl Drop for FleetAws {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FleetAws {
    /// Serves on a port of its own.
    ///
    /// # Errors
    /// No port can be opened.
    pub async fn start(options: FleetOptions) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("open a port for the fleets' AWS")?;
        let url = format!("http://{}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            options,
            ec2: Mutex::default(),
            objects: Mutex::default(),
            refusals: Mutex::default(),
            calls: Mutex::default(),
        });
        let app = Router::new().fallback(handle).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            // Ends only with the task.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { url, shared, task })
    }

    /// What `AWS_ENDPOINT_URL` is set to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Every instance ever launched.
    pub fn instances(&self) -> Vec<FleetInstance> {
        lock(&self.shared.ec2).instances.iter().map(|one| one.shown.clone()).collect()
    }

    /// How many ran at the same time, at most.
    pub fn most_alive(&self) -> usize {
        lock(&self.shared.ec2).most_alive
    }

    /// The machine switches itself off; its launch template has EC2 terminate it then.
    pub fn power_off(&self, id: &str) {
        for one in lock(&self.shared.ec2).instances.iter_mut().filter(|one| one.shown.id == id) {
            one.shown.alive = false;
        }
    }

    /// What a pool has from now on.
    pub fn set_pool(&self, kind: &str, subnet: &str, pool: Pool) {
        lock(&self.shared.ec2).pools.insert((kind.to_owned(), subnet.to_owned()), pool);
    }

    /// How long it takes until a new instance is listed.
    pub fn list_late(&self, lag: Duration) {
        lock(&self.shared.ec2).lag = lag;
    }

    /// The next launches happen, and EC2 answers that something went wrong.
    pub fn lose_answers(&self, count: u32) {
        lock(&self.shared.ec2).lost_answers = count;
    }

    /// The next calls of this operation are refused.
    pub fn refuse(&self, refusal: Refusal) {
        lock(&self.shared.refusals).push(refusal);
    }

    /// How many calls of this operation there were: `CreateFleet`, `GET /BUCKET/KEY`.
    pub fn count(&self, operation: &str) -> usize {
        lock(&self.shared.calls).iter().filter(|(_, call)| call == operation).count()
    }

    /// Each call, with the instance that made it.
    pub fn calls(&self) -> Vec<(String, String)> {
        lock(&self.shared.calls).clone()
    }

    /// The keys of the objects that there are.
    pub fn keys(&self) -> Vec<String> {
        lock(&self.shared.objects).keys().cloned().collect()
    }

    /// An object's content.
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        lock(&self.shared.objects).get(key).cloned()
    }

    /// Writes an object, as whoever may.
    pub fn put(&self, key: &str, bytes: Vec<u8>) {
        lock(&self.shared.objects).insert(key.to_owned(), bytes);
    }

    /// Deletes one.
    pub fn delete(&self, key: &str) {
        lock(&self.shared.objects).remove(key);
    }
}

async fn handle(Extract(shared): Extract<Arc<Shared>>, request: HttpRequest) -> Response {
    let Some(mut call) = Call::read(request).await else { return StatusCode::PAYLOAD_TOO_LARGE.into_response() };
    let session = call.headers.get("x-amz-security-token").and_then(|token| token.to_str().ok());
    let Some(instance) = session.and_then(instance_of) else { return gateway::refusal(&call, "ExpiredToken") };
    let operation = percent_decoded(&call.operation);
    lock(&shared.calls).push((instance.clone(), operation));
    if call.service == "s3" {
        // Whatever the key.
        call.operation = call.method.to_string();
    }
    if let Some(code) = gateway::told_to_refuse(&shared.refusals, &call) {
        return if call.service == "s3" {
            s3_error(StatusCode::SERVICE_UNAVAILABLE, code)
        } else {
            gateway::refusal(&call, code)
        };
    }
    let controller = instance == shared.options.controller;
    match call.service.as_str() {
        "s3" => objects(&shared, &call, &instance, controller),
        // source: <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetCallerIdentity.html> (no permission is needed) and
        // <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_variables.html> (an EC2 role's aws:userid is
        // role id:ec2-instance-id).
        "sts" if call.operation == "GetCallerIdentity" => {
            let role = if controller { "AROACONTROLLER" } else { &shared.options.role_id };
            let id = format!("<GetCallerIdentityResult><UserId>{role}:{instance}</UserId></GetCallerIdentityResult>");
            answer(&call, Ok(id))
        }
        "ec2" if !controller => gateway::refusal(&call, "UnauthorizedOperation"),
        "ec2" if call.operation == "CreateFleet" => create_fleet(&mut lock(&shared.ec2), &call),
        "ec2" if call.operation == "DescribeInstances" => {
            let answered = describe(&lock(&shared.ec2), &call);
            answer(&call, answered)
        }
        "ec2" if call.operation == "TerminateInstances" => {
            let answered = terminate(&mut lock(&shared.ec2), &call);
            answer(&call, answered)
        }
        _ => gateway::refusal(&call, "InvalidAction"),
    }
}

// ---- S3 ----

fn percent_decoded(path: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn s3_error(status: StatusCode, code: &str) -> Response {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{code}</Message></Error>");
    (status, [(header::CONTENT_TYPE, "application/xml")], body).into_response()
}

/// An object's version, of its content alone.
fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", &kiln_image::payload::sha256(bytes).as_str()[..32])
}

fn objects(shared: &Shared, call: &Call, instance: &str, controller: bool) -> Response {
    let path = percent_decoded(call.uri.path());
    let Some(key) = path.strip_prefix(&format!("/{}/", shared.options.bucket)) else {
        return s3_error(StatusCode::NOT_FOUND, "NoSuchBucket");
    };
    // source: the fleet's policy: GetObject and DeleteObject on runners/${aws:userid}/*, and nothing else.
    let own = key.starts_with(&format!("runners/{}:{instance}/", shared.options.role_id));
    let allowed = controller || (own && matches!(call.method, Method::GET | Method::DELETE));
    if !allowed {
        return s3_error(StatusCode::FORBIDDEN, "AccessDenied");
    }
    let header = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok());
    let mut objects = lock(&shared.objects);
    let there = objects.get(key).map(|bytes| etag(bytes));
    match call.method {
        Method::GET => match (objects.get(key), there) {
            // source: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html>: without s3:ListBucket, a key that
            // is not there is answered with 403.
            (None, _) if controller => s3_error(StatusCode::NOT_FOUND, "NoSuchKey"),
            (None, _) => s3_error(StatusCode::FORBIDDEN, "AccessDenied"),
            (Some(_), Some(etag)) if header("if-none-match") == Some(&etag) => StatusCode::NOT_MODIFIED.into_response(),
            (Some(bytes), etag) => ([(header::ETAG, etag.unwrap_or_default())], bytes.clone()).into_response(),
        },
        Method::PUT => {
            // source: <https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html>
            if header("if-none-match") == Some("*") && there.is_some() {
                return s3_error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
            }
            match (header("if-match"), &there) {
                (Some(_), None) => return s3_error(StatusCode::NOT_FOUND, "NoSuchKey"),
                (Some(wanted), Some(there)) if wanted != there => {
                    return s3_error(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
                }
                _ => {}
            }
            let etag = etag(&call.body);
            objects.insert(key.to_owned(), call.body.to_vec());
            (StatusCode::OK, [(header::ETAG, etag)]).into_response()
        }
        Method::DELETE => {
            // source: <https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html>: 204, whether or not it was there.
            objects.remove(key);
            StatusCode::NO_CONTENT.into_response()
        }
        _ => s3_error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
    }
}

// ---- EC2 ----

/// An override of a fleet: a pool, and how soon it is used.
struct Override {
    pool: (String, String),
    priority: u32,
}

fn create_fleet(ec2: &mut Ec2, call: &Call) -> Response {
    let token = call.field("ClientToken").unwrap_or_default();
    let asked = String::from_utf8_lossy(&call.body).into_owned();
    // source: <https://docs.aws.amazon.com/ec2/latest/devguide/ec2-api-idempotency.html>: the same token with the same
    // parameters is the same request; with others it is refused.
    if let Some((former, body)) = ec2.launches.get(&token) {
        let mismatch = || ("IdempotentParameterMismatch", "the token was used with other parameters".to_owned());
        return answer(call, if *former == asked { Ok(body.clone()) } else { Err(mismatch()) });
    }
    let body = match fill(ec2, call) {
        Ok(body) => body,
        Err(refused) => return answer(call, Err(refused)),
    };
    ec2.launches.insert(token, (asked, body.clone()));
    if ec2.lost_answers > 0 {
        ec2.lost_answers -= 1;
        return (StatusCode::SERVICE_UNAVAILABLE, "").into_response();
    }
    answer(call, Ok(body))
}

/// Launches as much as the pools have, and says of each that had none why.
///
/// source: `CreateFleetResult` in the API's model (ec2 2016-11-15): `fleetInstanceSet` and `errorSet`, for fleets of type instant.
/// source: <https://github.com/aws/karpenter-provider-aws/pull/303> (errors of some pools beside others' instances) and
/// <https://github.com/aws/karpenter-provider-aws/issues/8326> (status 200 where nothing was launched).
fn fill(ec2: &mut Ec2, call: &Call) -> Answered {
    let invalid = |what: &str| Err(("InvalidParameterValue", what.to_owned()));
    if call.field("Type").as_deref() != Some("instant") {
        return invalid("Type");
    }
    let count =
        |name: &str| call.field(&format!("TargetCapacitySpecification.{name}")).and_then(|text| text.parse().ok());
    let Some(mut missing @ 1..) = count("TotalTargetCapacity") else { return invalid("TotalTargetCapacity") };
    let market = call.field("TargetCapacitySpecification.DefaultTargetCapacityType").unwrap_or_default();
    let mut overrides = overrides(call)?;
    if call.field("OnDemandOptions.AllocationStrategy").as_deref() == Some("prioritized") {
        // source: OnDemandOptionsRequest in the model: the lowest number first.
        overrides.sort_by_key(|one| one.priority);
    }
    let tags = tags(call)?;
    let version = call.field("LaunchTemplateConfigs.1.LaunchTemplateSpecification.Version").unwrap_or_default();
    let (mut errors, mut sets) = (String::new(), String::new());
    for Override { pool, .. } in overrides {
        let (left, code) = match ec2.pools.get(&pool) {
            Some(pool) => (pool.left, pool.code),
            None => (u32::MAX, ""),
        };
        let taken = left.min(missing);
        missing -= taken;
        if let Some(pool) = ec2.pools.get_mut(&pool) {
            pool.left -= taken;
        }
        let (kind, subnet) = &pool;
        let described = format!(
            "<launchTemplateAndOverrides><overrides><instanceType>{kind}</instanceType><subnetId>{subnet}</subnetId>\
             </overrides></launchTemplateAndOverrides><lifecycle>{market}</lifecycle>"
        );
        if taken > 0 {
            let ids = (0..taken).map(|_| launch(ec2, &pool, &market, &tags, &version));
            let ids: String = ids.map(|id| format!("<item>{id}</item>")).collect();
            sets.push_str(&format!("<item>{described}<instanceIds>{ids}</instanceIds></item>"));
        }
        if taken == left && missing > 0 {
            let message = format!("{code} of {kind} in {subnet}");
            let error = format!("<errorCode>{code}</errorCode><errorMessage>{message}</errorMessage>");
            errors.push_str(&format!("<item>{described}{error}</item>"));
        }
    }
    let id = format!("fleet-{:017x}", ec2.launches.len() + 1);
    Ok(format!("<fleetId>{id}</fleetId><errorSet>{errors}</errorSet><fleetInstanceSet>{sets}</fleetInstanceSet>"))
}

fn overrides(call: &Call) -> Result<Vec<Override>, (&'static str, String)> {
    let mut all = Vec::new();
    for index in 1.. {
        let field = |name: &str| call.field(&format!("LaunchTemplateConfigs.1.Overrides.{index}.{name}"));
        let Some(kind) = field("InstanceType") else { break };
        let subnet = field("SubnetId").unwrap_or_default();
        // source: `SubnetId` of FleetLaunchTemplateOverridesRequest in the model: one in a request of type instant.
        if subnet.contains(',') {
            return Err(("InvalidParameterValue", "an instant fleet's override has one subnet".to_owned()));
        }
        let priority = field("Priority").and_then(|text| text.parse().ok()).unwrap_or(u32::MAX);
        all.push(Override { pool: (kind, subnet), priority });
    }
    if all.is_empty() || all.len() > 300 {
        return Err(("InvalidParameterValue", format!("{} overrides", all.len())));
    }
    Ok(all)
}

/// source: `TagSpecifications` of CreateFleetRequest in the model: of the fleet and, for type instant, of its instances.
fn tags(call: &Call) -> Result<BTreeMap<String, String>, (&'static str, String)> {
    let mut tags = BTreeMap::new();
    for index in 1.. {
        let Some(kind) = call.field(&format!("TagSpecification.{index}.ResourceType")) else { break };
        if !["fleet", "instance"].contains(&kind.as_str()) {
            return Err(("InvalidParameterValue", format!("no tags of {kind}")));
        }
        for number in 1.. {
            let field = |name: &str| call.field(&format!("TagSpecification.{index}.Tag.{number}.{name}"));
            let Some(key) = field("Key") else { break };
            if kind == "instance" {
                tags.insert(key, field("Value").unwrap_or_default());
            }
        }
    }
    Ok(tags)
}

fn launch(
    ec2: &mut Ec2,
    pool: &(String, String),
    market: &str,
    tags: &BTreeMap<String, String>,
    version: &str,
) -> String {
    let id = format!("i-{:017x}", ec2.instances.len() + 1);
    let shown = FleetInstance {
        id: id.clone(),
        tags: tags.clone(),
        pool: pool.clone(),
        market: market.to_owned(),
        alive: true,
    };
    ec2.instances.push(Launched {
        shown,
        version: version.to_owned(),
        launched: SystemTime::now(),
        listed_from: Instant::now() + ec2.lag,
    });
    let alive = ec2.instances.iter().filter(|one| one.shown.alive).count();
    ec2.most_alive = ec2.most_alive.max(alive);
    id
}

/// source: `DescribeInstancesRequest` in the model; filters of one call must all hold, and one of each filter's values.
/// source: <https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>: a new instance may not be listed yet.
fn describe(ec2: &Ec2, call: &Call) -> Answered {
    let filters: Vec<(String, BTreeSet<String>)> = (1..)
        .map_while(|index| {
            let name = call.field(&format!("Filter.{index}.Name"))?;
            let values = (1..).map_while(|number| call.field(&format!("Filter.{index}.Value.{number}")));
            Some((name, values.collect()))
        })
        .collect();
    let fits = |one: &&Launched| {
        filters.iter().all(|(name, values)| match (name.as_str(), name.strip_prefix("tag:")) {
            (_, Some(tag)) => one.shown.tags.get(tag).is_some_and(|value| values.contains(value)),
            ("tag-key", _) => values.iter().any(|key| one.shown.tags.contains_key(key)),
            ("instance-state-name", _) => values.contains(if one.shown.alive { "running" } else { "terminated" }),
            _ => false,
        })
    };
    let now = Instant::now();
    let all: Vec<&Launched> = ec2.instances.iter().rev().filter(|one| one.listed_from <= now).filter(fits).collect();
    let page = call.field("MaxResults").and_then(|text| text.parse::<usize>().ok()).unwrap_or(1000);
    let from = call.field("NextToken").and_then(|text| text.parse::<usize>().ok()).unwrap_or_default();
    let items: String = all.iter().skip(from).take(page).map(|one| described(one)).collect();
    let next = if from + page < all.len() { format!("<nextToken>{}</nextToken>", from + page) } else { String::new() };
    Ok(format!("<reservationSet>{items}</reservationSet>{next}"))
}

fn described(one: &Launched) -> String {
    let state = if one.shown.alive { "running" } else { "terminated" };
    let mut tags = one.shown.tags.clone();
    // source: <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/launch-templates.html>: EC2 adds this tag itself.
    tags.insert("aws:ec2launchtemplate:version".to_owned(), one.version.clone());
    let tags: String =
        tags.iter().map(|(key, value)| format!("<item><key>{key}</key><value>{value}</value></item>")).collect();
    format!(
        "<item><instancesSet><item><instanceId>{}</instanceId><instanceState><code>16</code><name>{state}</name>\
         </instanceState><launchTime>{}</launchTime><tagSet>{tags}</tagSet></item></instancesSet></item>",
        one.shown.id,
        humantime::format_rfc3339_millis(one.launched)
    )
}

/// source: <https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_TerminateInstances.html>: at most 1,000 ids; where one is
/// wrong none is terminated; once more is a success.
fn terminate(ec2: &mut Ec2, call: &Call) -> Answered {
    let ids: Vec<String> = (1..).map_while(|index| call.field(&format!("InstanceId.{index}"))).collect();
    if ids.is_empty() || ids.len() > 1000 {
        return Err(("InvalidParameterValue", format!("{} ids", ids.len())));
    }
    let known: BTreeSet<String> = ec2.instances.iter().map(|one| one.shown.id.clone()).collect();
    let unknown: Vec<&str> = ids.iter().filter(|id| !known.contains(*id)).map(String::as_str).collect();
    if !unknown.is_empty() {
        // source: EC2's words in <https://github.com/getmoto/moto/issues/4903>
        let message = match unknown.as_slice() {
            [one] => format!("The instance ID '{one}' does not exist"),
            several => format!("The instance IDs '{}' do not exist", several.join(", ")),
        };
        return Err(("InvalidInstanceID.NotFound", message));
    }
    for one in ec2.instances.iter_mut().filter(|one| ids.contains(&one.shown.id)) {
        one.shown.alive = false;
    }
    Ok("<instancesSet/>".to_owned())
}
