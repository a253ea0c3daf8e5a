//! Records written under topic handles that are looked up once: the wrapper allocates a C string for the topic's name
//! and looks it up for every record.

use super::consume::Consumed;
use rdkafka::types::RDKafkaErrorCode;
use rdkafka_sys as sys;
use std::ffi::{CString, c_void};
use std::ptr::{self, NonNull};
use std::time::Duration;

/// A producer's handle of a topic. It must be dropped before its client is.
pub(crate) struct TopicHandle(NonNull<sys::rd_kafka_topic_t>);

// SAFETY: librdkafka's topic handles may be used from any thread.
unsafe impl Send for TopicHandle {}

impl TopicHandle {
    /// A handle under the client's own settings.
    ///
    /// # Safety
    /// `client` must be valid, and outlive the handle.
    pub(crate) unsafe fn new(client: *mut sys::rd_kafka_t, topic: &str) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: client and name are valid; without a configuration the client's default for topics is taken.
        let handle = unsafe { sys::rd_kafka_topic_new(client, topic.as_ptr(), ptr::null_mut()) };
        NonNull::new(handle).map(Self)
    }
}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: owned, and given back once, before its client goes (see the type).
        unsafe { sys::rd_kafka_topic_destroy(self.0.as_ptr()) }
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

/// Sends all that is queued without lingering, and waits at most `wait` until it is acknowledged.
///
/// # Safety
/// `client` must be a valid producer.
pub(crate) unsafe fn flush(client: *mut sys::rd_kafka_t, wait: Duration) {
    let wait_ms = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client is valid. That time ran out is no error here: the caller looks at what is left.
    unsafe { sys::rd_kafka_flush(client, wait_ms) };
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
pub(crate) unsafe fn produce(
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
