//! Permissions (IAM's policy simulation), instance types, subnets and quotas of the account.

use std::collections::{BTreeMap, BTreeSet};

use aws_sdk_ec2::types::{Filter, LocationType, Route, RouteTable, Subnet};
use aws_sdk_iam::types::{ContextEntry, ContextKeyTypeEnum, PolicyEvaluationDecisionType};
use kiln_operations::ports::{
    Account, Caller, Egress, IamAction, Identity as _, InstanceTypeFacts, Result, SubnetFacts,
};

use crate::Aws;
use crate::pages::pages;

/// The number of actions in one simulation. IAM's limit is far higher.
const MOST_ACTIONS: usize = 100;

fn filter(name: &str, values: &[String]) -> Filter {
    Filter::builder().name(name).set_values(Some(values.to_vec())).build()
}

impl Aws {
    /// The principal to simulate: the caller's user, or the role of its session. `None` for the root user.
    async fn policy_source(&self, caller: &Caller) -> Result<Option<String>> {
        if caller.arn.ends_with(":root") {
            return Ok(None);
        }
        let Some((_, session)) = caller.arn.split_once(":assumed-role/") else {
            return Ok(Some(caller.arn.clone()));
        };
        // The ARN of a session does not contain the role's path.
        let role = session.split('/').next().unwrap_or_default();
        let answer = self.iam.get_role().role_name(role).send().await;
        let answer = answer.map_err(|error| self.failed(format!("read role `{role}`"), error))?;
        Ok(answer.role.map(|role| role.arn))
    }

    async fn simulate(
        &self,
        source: &str,
        (resource, context): (&str, &[(&str, &str)]),
        actions: &[String],
    ) -> Result<BTreeSet<String>> {
        let entry = |(name, value): &(&str, &str)| {
            // A condition on a multivalued key, such as `aws:CalledVia`, may match any of its values.
            let kind =
                if *name == "aws:CalledVia" { ContextKeyTypeEnum::StringList } else { ContextKeyTypeEnum::String };
            ContextEntry::builder().context_key_name(*name).context_key_type(kind).context_key_values(*value).build()
        };
        let entries: Vec<ContextEntry> = context.iter().map(entry).collect();
        let simulate = self
            .iam
            .simulate_principal_policy()
            .policy_source_arn(source)
            .resource_arns(resource)
            .set_action_names(Some(actions.to_vec()))
            .set_context_entries((!entries.is_empty()).then_some(entries))
            .max_items(1000);
        let pages = pages!(self, format!("simulate the policies of {source}"), simulate).await?;
        let results = pages.into_iter().flat_map(|page| page.evaluation_results.unwrap_or_default());
        let denied = results.filter(|result| result.eval_decision != PolicyEvaluationDecisionType::Allowed);
        Ok(denied.map(|result| result.eval_action_name).collect())
    }

    /// The route table of each subnet: its own or, without one, the VPC's main route table.
    async fn route_tables(&self, subnets: &[Subnet]) -> Result<Vec<RouteTable>> {
        let vpcs: BTreeSet<String> = subnets.iter().filter_map(|subnet| subnet.vpc_id.clone()).collect();
        let vpcs: Vec<String> = vpcs.into_iter().collect();
        let list = self.ec2.describe_route_tables().filters(filter("vpc-id", &vpcs));
        let pages = pages!(self, format!("describe route tables of {}", vpcs.join(", ")), list).await?;
        Ok(pages.into_iter().flat_map(|page| page.route_tables.unwrap_or_default()).collect())
    }
}

fn table_of<'a>(subnet: &Subnet, tables: &'a [RouteTable]) -> Option<&'a RouteTable> {
    let own = tables.iter().find(|table| {
        table
            .associations()
            .iter()
            .any(|association| association.subnet_id().is_some() && association.subnet_id() == subnet.subnet_id())
    });
    own.or_else(|| {
        tables.iter().find(|table| {
            table.vpc_id() == subnet.vpc_id() && table.associations().iter().any(|a| a.main().unwrap_or_default())
        })
    })
}

fn way_out(subnet: &Subnet, tables: &[RouteTable]) -> Egress {
    let routes = table_of(subnet, tables).map(RouteTable::routes).unwrap_or_default();
    let leads_out = |route: &&Route| {
        route.destination_cidr_block() == Some("0.0.0.0/0")
            // A route whose target was deleted remains in the state `blackhole`.
            && route.state().is_none_or(|state| state.as_str() != "blackhole")
    };
    match routes.iter().find(leads_out) {
        None => Egress::None,
        Some(route) if route.gateway_id().is_some_and(|id| id.starts_with("igw-")) => {
            Egress::Gateway { public: subnet.map_public_ip_on_launch().unwrap_or_default() }
        }
        Some(_) => Egress::Through,
    }
}

/// The context keys and values of a simulated request.
type Context = &'static [(&'static str, &'static str)];

impl Account for Aws {
    async fn lacking(&self, rights: &[IamAction]) -> Result<Vec<IamAction>> {
        let caller = self.caller().await?;
        let Some(source) = self.policy_source(&caller).await? else { return Ok(Vec::new()) };
        // Each simulation is for one resource and one context.
        let mut asked: BTreeMap<(&str, Context), Vec<String>> = BTreeMap::new();
        for right in rights {
            asked.entry((&right.resource, right.context)).or_default().push(right.action.clone());
        }
        let mut lacking = Vec::new();
        for ((resource, context), actions) in asked {
            for actions in actions.chunks(MOST_ACTIONS) {
                let denied = self.simulate(&source, (resource, context), actions).await?;
                let denied = denied.into_iter();
                lacking.extend(denied.map(|action| IamAction { action, resource: resource.to_owned(), context }));
            }
        }
        Ok(lacking)
    }

    async fn instance_types(&self, names: &[String]) -> Result<Vec<InstanceTypeFacts>> {
        // A filter, not a parameter: a parameter that does not exist makes the whole call fail.
        let list = self.ec2.describe_instance_types().filters(filter("instance-type", names));
        let pages = pages!(self, format!("describe instance types {}", names.join(", ")), list).await?;
        let found = pages.into_iter().flat_map(|page| page.instance_types.unwrap_or_default());
        let facts = found.filter_map(|info| {
            let vcpus = info.v_cpu_info().and_then(|cpus| cpus.default_v_cpus()).unwrap_or_default();
            let architectures = info.processor_info().map(|processor| processor.supported_architectures());
            Some(InstanceTypeFacts {
                name: info.instance_type()?.as_str().to_owned(),
                vcpus: u32::try_from(vcpus).unwrap_or_default(),
                architectures: architectures.unwrap_or_default().iter().map(|a| a.as_str().to_owned()).collect(),
            })
        });
        Ok(facts.collect())
    }

    async fn zones_of(&self, names: &[String]) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let list = self.ec2.describe_instance_type_offerings().location_type(LocationType::AvailabilityZone);
        let list = list.filters(filter("instance-type", names));
        let pages = pages!(self, format!("list the zones that offer {}", names.join(", ")), list).await?;
        let offerings = pages.into_iter().flat_map(|page| page.instance_type_offerings.unwrap_or_default());
        let mut zones: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for offering in offerings {
            if let (Some(name), Some(zone)) = (offering.instance_type, offering.location) {
                zones.entry(name.as_str().to_owned()).or_default().insert(zone);
            }
        }
        Ok(zones)
    }

    async fn key_state(&self, arn: &str) -> Result<Option<String>> {
        let key = self.described_key(arn).await?;
        Ok(key.and_then(|key| key.key_state).map(|state| state.as_str().to_owned()))
    }

    async fn offered_types(&self, names: &[String], zone: Option<&str>) -> Result<BTreeSet<String>> {
        let place = zone.unwrap_or(&self.region);
        let doing = format!("look up which of {} are offered in {place}", names.join(", "));
        let kind = if zone.is_some() { LocationType::AvailabilityZone } else { LocationType::Region };
        let mut offered = BTreeSet::new();
        let mut pages = self
            .ec2
            .describe_instance_type_offerings()
            .location_type(kind)
            .filters(filter("location", &[place.to_owned()]))
            .filters(filter("instance-type", names))
            .into_paginator()
            .send();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| self.failed(&doing, error))?;
            let offerings = page.instance_type_offerings.unwrap_or_default().into_iter();
            offered.extend(offerings.filter_map(|offering| Some(offering.instance_type?.as_str().to_owned())));
        }
        Ok(offered)
    }

    async fn subnets(&self, ids: &[String]) -> Result<Vec<SubnetFacts>> {
        let list = self.ec2.describe_subnets().filters(filter("subnet-id", ids));
        let pages = pages!(self, format!("describe subnets {}", ids.join(", ")), list).await?;
        let subnets: Vec<Subnet> = pages.into_iter().flat_map(|page| page.subnets.unwrap_or_default()).collect();
        if subnets.is_empty() {
            return Ok(Vec::new());
        }
        let tables = self.route_tables(&subnets).await?;
        let facts = subnets.iter().filter_map(|subnet| {
            Some(SubnetFacts {
                id: subnet.subnet_id()?.to_owned(),
                vpc: subnet.vpc_id()?.to_owned(),
                zone: subnet.availability_zone().unwrap_or_default().to_owned(),
                way_out: way_out(subnet, &tables),
            })
        });
        Ok(facts.collect())
    }

    async fn vcpu_quota(&self, code: &str) -> Result<u32> {
        let doing = || format!("read quota {code} of ec2");
        let quota = match self.quotas.get_service_quota().service_code("ec2").quota_code(code).send().await {
            Ok(answer) => answer.quota,
            // An account that never requested an increase has only the default quota.
            Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_resource_exception()) => {
                let answer =
                    self.quotas.get_aws_default_service_quota().service_code("ec2").quota_code(code).send().await;
                answer.map_err(|error| self.failed(doing(), error))?.quota
            }
            Err(error) => return Err(self.failed(doing(), error)),
        };
        let value =
            quota.and_then(|quota| quota.value).ok_or_else(|| self.odd(doing(), "the answer holds no value"))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a quota is a small whole number")]
        Ok(value as u32)
    }
}
