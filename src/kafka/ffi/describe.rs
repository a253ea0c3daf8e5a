//! Topic ids, by which a topic that was deleted and created again is told from the one before.

use crate::kafka::offsets::Described;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka_sys as sys;
use std::ffi::{CStr, CString, c_char};
use std::time::Duration;

/// A topic's id and partition count; `None` where the broker does not tell (librdkafka's mock does not).
pub(crate) fn describe_topic<C: ConsumerContext>(consumer: &BaseConsumer<C>, topic: &str, timeout: Duration) -> Option<Described> {
    let name = CString::new(topic).ok()?;
    let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    let client = consumer.client().native_ptr();
    // SAFETY: every object is created here, used while it lives, and destroyed once, in reverse order. The result
    // borrows from `event` and is read before that is destroyed.
    unsafe {
        let mut names = [name.as_ptr()];
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), names.len());
        let queue = sys::rd_kafka_queue_new(client);
        let options = sys::rd_kafka_AdminOptions_new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let mut text: [c_char; 1] = [0];
        sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, text.as_mut_ptr(), 0);
        sys::rd_kafka_DescribeTopics(client, topics, options, queue);
        let event = sys::rd_kafka_queue_poll(queue, timeout_ms);
        let described = described_topic(event);
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_TopicCollection_destroy(topics);
        described
    }
}

/// # Safety
/// `event` is null or a valid event.
unsafe fn described_topic(event: *mut sys::rd_kafka_event_t) -> Option<Described> {
    // SAFETY: librdkafka accepts null here and answers null for an event of another kind.
    let result = unsafe { sys::rd_kafka_event_DescribeTopics_result(event) };
    if event.is_null() || result.is_null() {
        return None;
    }
    let mut count = 0;
    // SAFETY: `result` is valid as long as `event`; so are the descriptions and what they point to.
    unsafe {
        let descriptions = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if descriptions.is_null() || count != 1 {
            return None;
        }
        let description = *descriptions;
        let error = sys::rd_kafka_TopicDescription_error(description);
        if !error.is_null() && sys::rd_kafka_error_code(error) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(description);
        if id.is_null() {
            return None;
        }
        let text = CStr::from_ptr(sys::rd_kafka_Uuid_base64str(id)).to_str().ok()?;
        let mut partitions = 0;
        sys::rd_kafka_TopicDescription_partitions(description, &raw mut partitions);
        // An id of zeros is no id: a broker that does not know the topic, or does not tell.
        let told = !text.is_empty() && !text.starts_with("AAAAAAAAAAAAAAAAAAAAA") && partitions > 0;
        told.then(|| Described { id: text.to_owned(), partitions: partitions as u32 })
    }
}
