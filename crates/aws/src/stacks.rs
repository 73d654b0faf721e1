//! CloudFormation.

use std::time::Duration;

use aws_sdk_cloudformation::error::ProvideErrorMetadata as _;
use aws_sdk_cloudformation::types::{
    Capability, Change, ChangeSetStatus, ChangeSetType, EventFilter, OperationEvent, Parameter, Replacement, Tag,
    TemplateStage,
};
use kiln_operations::ports::{ChangeSet, ResourceChange, Result, Stack, StackEvent, StackRequest, Stacks};
use kiln_operations::stacks;
use kiln_operations::wait::PollBackoff;

use crate::Aws;
use crate::pages::pages;

/// How long the creation of a change set may take. It takes seconds.
const CHANGE_SET_LIMIT: Duration = Duration::from_secs(300);

fn is_absent(code: Option<&str>, message: Option<&str>) -> bool {
    code == Some("ValidationError") && message.is_some_and(|message| message.contains("does not exist"))
}

impl Stacks for Aws {
    async fn stack(&self, name: &str) -> Result<Option<Stack>> {
        let answer = match self.cloudformation.describe_stacks().stack_name(name).send().await {
            Ok(answer) => answer,
            Err(error) if is_absent(error.code(), error.message()) => return Ok(None),
            Err(error) => return Err(self.failed(format!("describe stack `{name}`"), error)),
        };
        let Some(stack) = answer.stacks.unwrap_or_default().into_iter().next() else { return Ok(None) };
        let status = stack.stack_status().map(|status| status.as_str().to_owned()).unwrap_or_default();
        if status == "DELETE_COMPLETE" {
            return Ok(None);
        }
        let template = if status == "REVIEW_IN_PROGRESS" { None } else { Some(self.template(name).await?) };
        let parameters = stack.parameters.unwrap_or_default().into_iter();
        let outputs = stack.outputs.unwrap_or_default().into_iter();
        let tags = stack.tags.unwrap_or_default().into_iter();
        Ok(Some(Stack {
            name: name.to_owned(),
            status,
            reason: stack.stack_status_reason,
            template,
            parameters: parameters.filter_map(|p| Some((p.parameter_key?, p.parameter_value?))).collect(),
            outputs: outputs.filter_map(|o| Some((o.output_key?, o.output_value?))).collect(),
            tags: tags.filter_map(|tag| Some((tag.key?, tag.value?))).collect(),
        }))
    }

    async fn change_set(&self, request: &StackRequest) -> Result<ChangeSet> {
        let StackRequest { name, template, parameters, tags } = request;
        let doing = format!("make a change set for stack `{name}`");
        let now = self.stack(name).await?.filter(|stack| stack.status != "REVIEW_IN_PROGRESS");
        let kind = if now.is_none() { ChangeSetType::Create } else { ChangeSetType::Update };
        // With a role, IAM policies can limit the resource types of a change set, and CloudFormation refuses types that the request
        // does not list, also those of the previous template.
        // source: https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_CreateChangeSet.html
        let types = self.stack_role.is_some().then(|| {
            let mut types = stacks::resource_types(template);
            types.extend(now.and_then(|now| now.template).iter().flat_map(|now| stacks::resource_types(now)));
            types.into_iter().collect()
        });
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let parameters = parameters
            .iter()
            .map(|(key, value)| Parameter::builder().parameter_key(key).parameter_value(value).build())
            .collect();
        let tags = tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect();
        let made = self
            .cloudformation
            .create_change_set()
            .stack_name(name)
            .change_set_name(format!("kiln-{}", since.as_millis()))
            .change_set_type(kind)
            .template_body(template)
            .set_parameters(Some(parameters))
            .set_tags(Some(tags))
            .capabilities(Capability::CapabilityNamedIam)
            .set_role_arn(self.stack_role.clone())
            .set_resource_types(types)
            .send()
            .await
            .map_err(|error| self.failed(doing.clone(), error))?;
        let id = made.id.ok_or_else(|| self.odd(doing, "the answer names no change set"))?;
        self.described_change_set(name, &id).await
    }

    async fn execute(&self, change_set: &ChangeSet) -> Result<()> {
        let execute =
            self.cloudformation.execute_change_set().change_set_name(&change_set.id).stack_name(&change_set.stack);
        let doing = || format!("execute change set {}", change_set.id);
        execute.send().await.map_err(|error| self.failed(doing(), error))?;
        Ok(())
    }

    async fn discard(&self, change_set: &ChangeSet) -> Result<()> {
        let delete =
            self.cloudformation.delete_change_set().change_set_name(&change_set.id).stack_name(&change_set.stack);
        let doing = || format!("delete change set {}", change_set.id);
        delete.send().await.map_err(|error| self.failed(doing(), error))?;
        Ok(())
    }

    async fn events(&self, stack: &str) -> Result<Vec<StackEvent>> {
        let answer = match self.cloudformation.describe_stack_events().stack_name(stack).send().await {
            Ok(answer) => answer,
            Err(error) if is_absent(error.code(), error.message()) => return Ok(Vec::new()),
            Err(error) => return Err(self.failed(format!("read events of stack `{stack}`"), error)),
        };
        // Newest first, 100 on a page.
        let mut events: Vec<StackEvent> = answer
            .stack_events
            .unwrap_or_default()
            .into_iter()
            .filter_map(|event| {
                Some(StackEvent {
                    id: event.event_id?,
                    resource: event.logical_resource_id?,
                    kind: event.resource_type?,
                    status: event.resource_status?.as_str().to_owned(),
                    reason: event.resource_status_reason,
                })
            })
            .collect();
        events.reverse();
        Ok(events)
    }

    async fn delete_stack(&self, name: &str) -> Result<()> {
        let delete = self.cloudformation.delete_stack().stack_name(name).set_role_arn(self.stack_role.clone());
        delete.send().await.map_err(|error| self.failed(format!("delete stack `{name}`"), error))?;
        Ok(())
    }
}

impl Aws {
    async fn template(&self, stack: &str) -> Result<String> {
        let get = self.cloudformation.get_template().stack_name(stack).template_stage(TemplateStage::Original);
        let doing = format!("read the template of stack `{stack}`");
        let answer = get.send().await.map_err(|error| self.failed(doing, error))?;
        Ok(answer.template_body.unwrap_or_default())
    }

    /// The findings of CloudFormation's validation or of one of the account's hooks. The change set itself says only that it was
    /// refused. `None` if there are none, or they can't be read.
    ///
    /// Source: <https://docs.aws.amazon.com/AWSCloudFormation/latest/APIReference/API_DescribeEvents.html>
    async fn refused_by(&self, change_set: &str) -> Option<String> {
        let failed = EventFilter::builder().failed_events(true).build();
        let events =
            self.cloudformation.describe_events().change_set_name(change_set).filters(failed).send().await.ok()?;
        let reason = |event: &OperationEvent| {
            let reason = event
                .validation_status_reason()
                .or(event.hook_status_reason())
                .or(event.resource_status_reason())
                .filter(|reason| !reason.is_empty())?;
            let place = event.validation_path().or(event.logical_resource_id()).unwrap_or("the template");
            Some(format!("{place}: {reason}"))
        };
        let reasons: Vec<String> = events.operation_events().iter().filter_map(reason).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    async fn described_change_set(&self, stack: &str, id: &str) -> Result<ChangeSet> {
        let doing = format!("describe change set {id}");
        let mut pace = PollBackoff::new(CHANGE_SET_LIMIT);
        let described = loop {
            let describe = self.cloudformation.describe_change_set().stack_name(stack).change_set_name(id);
            let answer = describe.send().await.map_err(|error| self.failed(&doing, error))?;
            match answer.status() {
                Some(ChangeSetStatus::CreatePending | ChangeSetStatus::CreateInProgress) => {}
                _ => break answer,
            }
            if pace.pause().await.is_err() {
                return Err(self.odd(doing, "it was not ready within 5 min"));
            }
        };
        let mut change_set = ChangeSet { id: id.to_owned(), stack: stack.to_owned(), changes: Vec::new() };
        if described.status() == Some(&ChangeSetStatus::Failed) {
            let reason = described.status_reason().unwrap_or("no reason given");
            let empty = reason.contains("didn't contain changes") || reason.contains("No updates are to be performed");
            if empty {
                return Ok(change_set);
            }
            let why = self.refused_by(id).await.map(|why| format!("{reason}: {why}"));
            return Err(self.odd(doing, why.unwrap_or_else(|| reason.to_owned())));
        }
        if described.next_token().is_none() {
            change_set.changes.extend(described.changes().iter().filter_map(change_of));
            return Ok(change_set);
        }
        let describe = self.cloudformation.describe_change_set().stack_name(stack).change_set_name(id);
        let pages = pages!(self, doing, describe).await?;
        change_set.changes.extend(pages.iter().flat_map(|page| page.changes()).filter_map(change_of));
        Ok(change_set)
    }
}

fn change_of(change: &Change) -> Option<ResourceChange> {
    let change = change.resource_change()?;
    let mut details: Vec<String> =
        change.details().iter().filter_map(|detail| detail.target()?.name().map(str::to_owned)).collect();
    details.sort();
    details.dedup();
    Some(ResourceChange {
        action: change.action()?.as_str().to_owned(),
        resource: change.logical_resource_id()?.to_owned(),
        kind: change.resource_type()?.to_owned(),
        replacement: change.replacement() == Some(&Replacement::True),
        details,
    })
}
