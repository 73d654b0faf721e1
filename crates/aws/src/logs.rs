//! CloudWatch Logs.

use aws_sdk_cloudwatchlogs::error::SdkError;
use kiln_operations::ports::{Logs, Result};

use crate::Aws;

impl Logs for Aws {
    async fn log_tail(&self, group: &str, stream: &str, lines: u32) -> Result<Vec<String>> {
        let get = self
            .logs
            .get_log_events()
            .log_group_name(group)
            .log_stream_name(stream)
            .start_from_head(false)
            .limit(i32::try_from(lines).unwrap_or(i32::MAX));
        match get.send().await {
            Ok(page) => {
                let messages = page.events.unwrap_or_default().into_iter().filter_map(|event| event.message);
                Ok(messages.map(|message| message.trim_end().to_owned()).collect())
            }
            Err(SdkError::ServiceError(error)) if error.err().is_resource_not_found_exception() => Ok(Vec::new()),
            Err(error) => Err(self.failed(format!("read log {stream} in {group}"), error)),
        }
    }
}
