//! Answers leave in the coding that the client wants most, each event decodable when it was produced.
//!
//! ```text
//!  Accept-Encoding ─► negotiate ─► may this answer be coded? ─► is there memory? ─► whole: at once, or in pieces
//!                                     │ no                        │ no: a cheaper one   stream: flushed with each event
//!                                     ▼                           ▼
//!                                  as it is                    as it is, counted
//! ```
//! `docs/compression.md` says what is coded when, and what it costs. Backends of known endpoints are asked for answers
//! without a coding, since the stages below read them.
//!
//! Acts on both legs. When the client leaves: the encoder goes back to the pool with the body.

mod body;
pub mod encoder;
mod head;
mod negotiate;
mod pool;
mod whole;

use std::{mem, net::IpAddr, rc::Rc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use http_body::Body as _;
use tower::{Service, service_fn};

pub use self::pool::{Budget, Pool};
use self::{
    body::{Encoded, Pace},
    encoder::Kind,
    head::Fit,
    negotiate::Wanted,
    pool::Lease,
};
use super::{Arrival, Response, record::Record, respond};
use crate::{
    body::{Body, Representation},
    config::{self, Algorithm, Cidr},
    error::Error,
    protocol::{coding::Coding, endpoint::Endpoint},
};

#[cfg(test)]
mod tests;

/// One worker's stage, for one configuration.
#[derive(Debug)]
pub struct Compress {
    /// The most wanted first; none = off.
    codings: Vec<Coding>,
    min_size: usize,
    flush: Option<Duration>,
    exclude: Vec<Cidr>,
    pool: Rc<Pool>,
}

/// What one request wants of its answer's coding.
#[derive(Clone, Copy, Debug)]
struct Wish {
    codings: Wanted,
    /// `Cache-Control: no-transform`
    as_it_is: bool,
}

/// The stage: see the module.
pub fn compress<S>(
    ctx: Rc<Compress>,
    inner: S,
) -> impl Service<Arrival, Response = Response, Error = Error, Future = impl Future<Output = Result<Response, Error>>> + Clone
where
    S: Service<Arrival, Response = Response, Error = Error> + Clone,
{
    service_fn(move |mut arrival: Arrival| {
        let (ctx, mut inner) = (Rc::clone(&ctx), inner.clone());
        async move {
            if ctx.codings.is_empty() {
                return inner.call(arrival).await;
            }
            let record = Rc::clone(&arrival.record);
            let wish = ctx.wish(arrival.request.headers_mut(), &record);
            record.coding.set(wish.codings.first());
            let outcome = inner.call(arrival).await;
            record.coding.set(None);
            ctx.answer(outcome?, wish, &record).await
        }
    })
}

impl Compress {
    /// One worker's, for `config`.
    pub fn new(config: &config::Compression, pool: Rc<Pool>) -> Rc<Self> {
        let coding = |algorithm: &Algorithm| match algorithm {
            Algorithm::Gzip => Coding::Gzip,
            Algorithm::Zstd => Coding::Zstd,
            Algorithm::Br => Coding::Br,
        };
        Rc::new(Self {
            codings: config.algorithms.iter().map(coding).collect(),
            min_size: config.min_size,
            flush: config.flush,
            exclude: config.exclude.clone(),
            pool,
        })
    }

    /// What the client wants; the backend of a known endpoint is asked for no coding.
    fn wish(&self, headers: &mut HeaderMap, record: &Record) -> Wish {
        let as_it_is = no_transform(headers);
        let excluded = |ip: IpAddr| self.exclude.iter().any(|net| net.contains(ip));
        let address = record.peer.address.map(|address| address.ip());
        let none = as_it_is || address.is_some_and(excluded);
        let fields = headers.get_all(header::ACCEPT_ENCODING).iter().map(HeaderValue::as_bytes);
        let codings = if none { Wanted::default() } else { Wanted::of(fields, &self.codings) };
        if record.endpoint != Endpoint::Passthrough {
            headers.remove(header::ACCEPT_ENCODING);
        }
        Wish { codings, as_it_is }
    }

    async fn answer(&self, mut response: Response, wish: Wish, record: &Record) -> Result<Response, Error> {
        let fit = Fit::of(&response);
        if fit == Fit::No || wish.as_it_is || self.is_small(response.body()) {
            return Ok(response);
        }
        head::vary(response.headers_mut());
        if wish.codings.first().is_none() {
            return Ok(response);
        }
        if record.method == Method::HEAD {
            // GET would get another length.
            response.headers_mut().remove(header::CONTENT_LENGTH);
            return Ok(response.map(|_| Body::empty()));
        }
        if response.body().is_end_stream() {
            return Ok(response);
        }
        let body = mem::replace(response.body_mut(), Body::empty());
        let length = body.size_hint().exact();
        // What is there of a short one need not be a stream.
        let short = length.is_some_and(|length| length <= whole::AT_ONCE as u64);
        let body = if short && body.as_whole().is_none() { body::gathered(body).await } else { body };
        let (body, coding) = match (body.as_whole().cloned(), body.representation()) {
            (Some(bytes), kept) => self.whole(body, bytes, kept, wish)?,
            (None, _) => {
                *response.body_mut() = body;
                self.stream(&mut response, fit, length.is_some(), wish, record)?
            }
        };
        *response.body_mut() = body;
        record.coding.set(coding);
        if let Some(coding) = coding {
            head::coded(response.headers_mut(), coding);
        }
        Ok(response)
    }

    fn is_small(&self, body: &Body) -> bool {
        let length = body.size_hint().exact();
        // An empty one is what HEAD gets, whatever the length.
        length.is_some_and(|length| (1..self.min_size as u64).contains(&length))
    }

    fn pace(&self, fit: Fit, known: bool) -> Pace {
        match (fit, self.flush) {
            // Whose length is known is read to its end by everybody.
            (Fit::Plain, _) if known => Pace::End,
            (Fit::Stream, Some(period)) => Pace::every(period),
            _ => Pace::Event,
        }
    }

    /// A body that is here: as its twin, as it was coded before, or coded now.
    fn whole(
        &self,
        body: Body,
        bytes: Bytes,
        kept: Option<Rc<dyn Representation>>,
        wish: Wish,
    ) -> Result<(Body, Option<Coding>), Error> {
        let twin = kept.as_ref().and_then(|kept| {
            let coding = wish.codings.first()?;
            Some((kept.twin(coding)?, coding))
        });
        if let Some((twin, coding)) = twin {
            self.pool.counters.twins.increment(1);
            return Ok((Body::whole(twin), Some(coding)));
        }
        if bytes.len() > whole::AT_ONCE {
            let pieces = |coding| Ok(whole::in_pieces(&self.pool, coding, bytes.clone(), kept.clone()));
            return Ok(match self.affordable(wish.codings, false, pieces)? {
                Some((coded, coding)) => (coded, Some(coding)),
                None => (body, None),
            });
        }
        let lease = |coding| self.pool.lease(Kind::of(coding, false));
        let Some((mut lease, coding)) = self.affordable(wish.codings, false, lease)? else { return Ok((body, None)) };
        let coded = whole::at_once(&mut lease, &bytes)?;
        if coded.len() >= bytes.len() {
            return Ok((body, None));
        }
        if let Some(kept) = kept {
            kept.offer(coding, &coded);
        }
        Ok((Body::whole(coded), Some(coding)))
    }

    /// A body that comes in pieces. Its failure is told inside the coding, where the client reads.
    fn stream(
        &self,
        response: &mut Response,
        fit: Fit,
        known: bool,
        wish: Wish,
        record: &Record,
    ) -> Result<(Body, Option<Coding>), Error> {
        let pace = self.pace(fit, known);
        let flushed = !matches!(pace, Pace::End);
        let lease = |coding| self.pool.lease(Kind::of(coding, flushed));
        let lease: Option<(Lease, Coding)> = self.affordable(wish.codings, flushed, lease)?;
        let Some((lease, coding)) = lease else {
            return Ok((mem::replace(response.body_mut(), Body::empty()), None));
        };
        if fit == Fit::Stream {
            respond::honest(response, record);
        }
        let inner = mem::replace(response.body_mut(), Body::empty());
        Ok((Body::stream(Encoded::new(inner, lease, pace)), Some(coding)))
    }

    /// What `make` makes of the coding that is wanted most, or, if there is no memory for it, of a cheaper one that the
    /// client takes too.
    fn affordable<T>(
        &self,
        wanted: Wanted,
        stream: bool,
        make: impl Fn(Coding) -> Result<Option<T>, Error>,
    ) -> Result<Option<(T, Coding)>, Error> {
        let Some(first) = wanted.first() else { return Ok(None) };
        if let Some(made) = make(first)? {
            return Ok(Some((made, first)));
        }
        let cost = |coding| Kind::of(coding, stream).cost();
        let cheaper = wanted.iter().filter(|coding| cost(*coding) < cost(first)).min_by_key(|coding| cost(*coding));
        if let Some(coding) = cheaper
            && let Some(made) = make(coding)?
        {
            self.pool.counters.cheaper.increment(1);
            return Ok(Some((made, coding)));
        }
        self.pool.counters.refused.increment(1);
        Ok(None)
    }
}

/// `Cache-Control: no-transform` (RFC 9111 §5.2.1.6, §5.2.2.6).
fn no_transform(headers: &HeaderMap) -> bool {
    headers.get_all(header::CACHE_CONTROL).iter().any(|value| names(value, b"no-transform"))
}

/// Whether a list has `word` among its members.
fn names(value: &HeaderValue, word: &[u8]) -> bool {
    value.as_bytes().split(|b| *b == b',').any(|member| member.trim_ascii().eq_ignore_ascii_case(word))
}
