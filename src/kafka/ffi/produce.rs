//! Records written under topic handles that are looked up once: the wrapper allocates a C string for the topic's name
//! and looks it up for every record.

use super::consume::Consumed;
use crate::record::{TopicName, is_same_topic};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;
use std::cell::RefCell;
use std::ffi::{CString, c_void};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

/// A handle of a topic. Dropped before its client is: see [`HandleProducer`].
struct TopicHandle(NonNull<sys::rd_kafka_topic_t>);

// SAFETY: librdkafka's topic handles may be used from any thread.
unsafe impl Send for TopicHandle {}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: owned, and given back once, before its client goes (see the type).
        unsafe { sys::rd_kafka_topic_destroy(self.0.as_ptr()) }
    }
}

/// A producer that keeps the handles of the topics it writes. For one thread.
pub(crate) struct HandleProducer<C: ProducerContext + 'static> {
    // Dropped before `producer`: fields are dropped in the order in which they are declared.
    handles: RefCell<Vec<(TopicName, TopicHandle)>>,
    producer: Arc<BaseProducer<C>>,
}

impl<C: ProducerContext<DeliveryOpaque = ()> + 'static> HandleProducer<C> {
    /// Wraps a producer whose delivery reports carry nothing: records are handed over with a null pointer.
    pub(crate) fn new(producer: BaseProducer<C>) -> Self {
        Self { handles: RefCell::default(), producer: Arc::new(producer) }
    }

    /// The wrapped producer.
    pub(crate) fn producer(&self) -> &Arc<BaseProducer<C>> {
        &self.producer
    }

    /// Sends all that is queued without lingering, and waits at most `wait` until it is acknowledged.
    pub(crate) fn flush(&self, wait: Duration) {
        let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the client is valid. That time ran out is no error here: the caller looks at what is left.
        unsafe { sys::rd_kafka_flush(self.producer.client().native_ptr(), wait_ms) };
    }

    /// Hands a record to the client. `headers` are taken over if that succeeds, and left where they are if not.
    pub(crate) fn produce(&self, topic: &TopicName, record: &NewRecord<'_>, headers: &mut Option<NewHeaders>) -> Result<(), RDKafkaErrorCode> {
        let mut handles = self.handles.borrow_mut();
        let known = handles.iter().position(|(name, _)| is_same_topic(name, topic));
        let place = match known {
            Some(place) => place,
            None => {
                let name = CString::new(&**topic).map_err(|_| RDKafkaErrorCode::InvalidArgument)?;
                // SAFETY: client and name are valid; without a configuration the client's default for topics is taken.
                let handle = unsafe { sys::rd_kafka_topic_new(self.producer.client().native_ptr(), name.as_ptr(), ptr::null_mut()) };
                handles.push((topic.clone(), TopicHandle(NonNull::new(handle).ok_or(RDKafkaErrorCode::UnknownTopic)?)));
                handles.len() - 1
            }
        };
        // SAFETY: the client is valid, and the handle is its own.
        unsafe { produce(self.producer.client().native_ptr(), &handles[place].1, record, headers) }
    }
}

/// Asks any broker for the brokers, and waits at most `wait` for the answer: the client knows them then. It asks by itself too,
/// but nobody can wait for that: `rd_kafka_clusterid` sleeps on if the answer arrives before it begins to.
pub(crate) fn ask_for_brokers<C: ProducerContext>(producer: &BaseProducer<C>, wait: Duration) {
    let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    let mut metadata: *const sys::rd_kafka_metadata = ptr::null();
    // SAFETY: the client is valid, no topic is named, and where the call succeeds it has left what is ours to give back.
    unsafe {
        let error = sys::rd_kafka_metadata(producer.client().native_ptr(), 0, ptr::null_mut(), &raw mut metadata, wait_ms);
        if error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            sys::rd_kafka_metadata_destroy(metadata);
        }
    }
}

/// A list of headers to be written.
pub(crate) struct NewHeaders(NonNull<sys::rd_kafka_headers_t>);

impl NewHeaders {
    /// The headers of a record that was read, if it has any, and `new` ones behind them; `None` where there are none.
    pub(crate) fn of(consumed: Option<&Consumed<'_>>, new: &[(&'static str, String)]) -> Option<Self> {
        let existing = consumed.and_then(Consumed::native_headers);
        if existing.is_none() && new.is_empty() {
            return None;
        }
        let list = match existing {
            // SAFETY: the list lives as long as the message that `consumed` is; the copy is owned here.
            Some(existing) => unsafe { sys::rd_kafka_headers_copy(existing) },
            // SAFETY: nothing is asked of the caller.
            None => unsafe { sys::rd_kafka_headers_new(new.len()) },
        };
        let list = Self(NonNull::new(list)?);
        for (name, value) in new {
            // SAFETY: the list is owned; names and values are copied within the lengths that are given.
            unsafe {
                sys::rd_kafka_header_add(
                    list.0.as_ptr(),
                    name.as_ptr().cast(),
                    name.len() as isize,
                    value.as_ptr().cast(),
                    value.len() as isize,
                );
            }
        }
        Some(list)
    }
}

impl Drop for NewHeaders {
    fn drop(&mut self) {
        // SAFETY: owned: what the client has taken over is forgotten before it comes here.
        unsafe { sys::rd_kafka_headers_destroy(self.0.as_ptr()) }
    }
}

/// What is written, borrowed: the client copies key and value.
pub(crate) struct NewRecord<'a> {
    pub(crate) partition: u32,
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) value: Option<&'a [u8]>,
    /// Milliseconds since the Unix epoch; `None`: now.
    pub(crate) timestamp_ms: Option<i64>,
}

/// Hands a record to the client. `headers` are taken over if that succeeds, and left where they are if not.
///
/// # Safety
/// `client` must be a valid producer, and `topic` one of its handles.
unsafe fn produce(
    client: *mut sys::rd_kafka_t,
    topic: &TopicHandle,
    record: &NewRecord<'_>,
    headers: &mut Option<NewHeaders>,
) -> Result<(), RDKafkaErrorCode> {
    use sys::rd_kafka_vtype_t as kind;
    type Field = sys::rd_kafka_vu_s__bindgen_ty_1;
    let bytes = |bytes: Option<&[u8]>| Field {
        mem: sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: bytes.map_or(ptr::null_mut(), |bytes| bytes.as_ptr().cast_mut().cast::<c_void>()),
            size: bytes.map_or(0, <[u8]>::len),
        },
    };
    let list = headers.as_ref().map_or(ptr::null_mut(), |headers| headers.0.as_ptr());
    let field = |vtype, u| sys::rd_kafka_vu_t { vtype, u };
    let fields = [
        field(kind::RD_KAFKA_VTYPE_RKT, Field { rkt: topic.0.as_ptr() }),
        field(kind::RD_KAFKA_VTYPE_PARTITION, Field { i32_: i32::try_from(record.partition).unwrap_or(i32::MAX) }),
        field(kind::RD_KAFKA_VTYPE_MSGFLAGS, Field { i: sys::RD_KAFKA_MSG_F_COPY }),
        field(kind::RD_KAFKA_VTYPE_VALUE, bytes(record.value)),
        field(kind::RD_KAFKA_VTYPE_KEY, bytes(record.key)),
        field(kind::RD_KAFKA_VTYPE_TIMESTAMP, Field { i64_: record.timestamp_ms.unwrap_or(0) }),
        field(kind::RD_KAFKA_VTYPE_HEADERS, Field { headers: list }),
    ];
    // SAFETY: client and handle are valid; key and value are copied before the call returns; the list of headers is
    // owned by us until the call succeeds.
    let error = unsafe { sys::rd_kafka_produceva(client, fields.as_ptr(), fields.len()) };
    if error.is_null() {
        // The client owns the headers now.
        std::mem::forget(headers.take());
        return Ok(());
    }
    // SAFETY: the error is ours, read and then given back once.
    let code = unsafe {
        let code = sys::rd_kafka_error_code(error);
        sys::rd_kafka_error_destroy(error);
        code
    };
    Err(code.into())
}
