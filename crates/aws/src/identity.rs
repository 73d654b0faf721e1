//! Who the credentials belong to.

use kiln_operations::ports::{Caller, Identity, Result};

use crate::Aws;

impl Identity for Aws {
    async fn caller(&self) -> Result<Caller> {
        self.caller
            .get_or_try_init(|| async {
                let doing = "ask AWS who these credentials belong to";
                let answer = self.sts.get_caller_identity().send().await.map_err(|error| self.failed(doing, error))?;
                let (Some(account), Some(arn)) = (answer.account, answer.arn) else {
                    return Err(self.odd(doing, "the answer names no account"));
                };
                let partition = arn.split(':').nth(1).unwrap_or("aws").to_owned();
                Ok(Caller { partition, account, arn })
            })
            .await
            .cloned()
    }
}
