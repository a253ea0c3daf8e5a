//! Setting records aside: the dead letter, and what becomes of a record that no topic can hold.

use super::layout::Layout;
use crate::kafka::EdgeError;
use crate::kafka::group::Received;
use crate::kafka::producer::TransactionalProducer;
use crate::record::TopicName;
use crate::wire::DecodeError;
use sha2::{Digest, Sha256};

/// Writes a dead letter: the record as it was, and where it lay, which stage could not read it and why.
pub(super) struct DeadLetters<'a> {
    pub(super) layout: &'a Layout,
    pub(super) topic: &'a TopicName,
    pub(super) stage: &'static str,
}

impl DeadLetters<'_> {
    pub(super) fn write(
        &self,
        transaction: &TransactionalProducer,
        received: &Received<'_>,
        index: Option<u32>,
        reason: DecodeError,
    ) -> Result<(), EdgeError> {
        let mut existing = Vec::new();
        received.headers(&mut existing);
        let record = received.record(&existing);
        let mut headers = vec![
            ("stopgate-stage", self.stage.to_owned()),
            ("stopgate-source", record.coordinates().to_string()),
            ("stopgate-reason", reason.as_str().to_owned()),
        ];
        headers.extend(index.map(|index| ("stopgate-index", index.to_string())));
        let partition = received.partition() % self.layout.partitions(self.topic);
        let bytes = record.size() + headers_size(&headers);
        if bytes <= self.layout.room(self.topic) {
            return transaction.forward(received, self.topic, partition, &headers);
        }
        // Too large even for here: coordinates, size and hash stand for the value, which goes on lying where it was.
        let value = record.value.unwrap_or_default();
        headers.push(("stopgate-size", value.len().to_string()));
        headers.push(("stopgate-sha256", Sha256::digest(value).iter().map(|byte| format!("{byte:02x}")).collect()));
        transaction.forward_without_value(received, self.topic, partition, &headers)
    }
}

/// Bytes that headers add to a record.
pub(super) fn headers_size(headers: &[(&'static str, String)]) -> u64 {
    headers.iter().map(|(name, value)| (name.len() + value.len() + 4) as u64).sum()
}
