//! The request that the owner of a connection answers.
use std::rc::Rc;

use crate::http::fields::Fields;
use crate::http::h2::head::RequestHead;
use crate::http::h2::receive_window::RequestBody;
use crate::http::request::Request;
use crate::http::response::ResponseContext;

/// A request with its stream.
pub struct CurrentRequest {
    pub id: u32,
    pub head: Rc<RequestHead>,
    pub body: RequestBody,
    /// What the peer may receive of the response.
    pub window: i64,
    /// The peer has not ended its request.
    pub is_half_open: bool,
}

impl CurrentRequest {
    pub fn bodiless(id: u32, head: Rc<RequestHead>, window: i64, is_half_open: bool) -> Self {
        Self { id, head, body: RequestBody::default(), window, is_half_open }
    }

    pub fn request(&mut self) -> Request<'_> {
        self.head.request(&mut self.body.bytes)
    }

    /// What the answer needs if the request is refused.
    pub fn refused(&self) -> (ResponseContext, Fields<'_>) {
        (ResponseContext { head: self.head.is_head(), ..ResponseContext::HTTP2 }, self.head.fields())
    }
}
