//! The second tier of the cache, where one is configured: a handle for all threads, and the task that keeps it.

use super::Shared;
use crate::{
    config::Config,
    proxy::cache::remote::{Remote, Waiting},
    runtime::supervisor::Supervisor,
};

/// The handle, and what is to be given to [`keep`].
#[cfg(feature = "redis")]
pub(super) fn build(config: &Config) -> Option<(Remote, Waiting)> {
    use crate::proxy::cache::Keys;

    let cache = &config.cache;
    let key = cache.key.as_ref().filter(|_| cache.redis.is_some() && cache.capacity > 0)?;
    Some(Remote::new(&Keys::new(Some(key)).seal_key(), cache.max_entry))
}

/// A configuration that names one was refused.
#[cfg(not(feature = "redis"))]
pub(super) fn build(_: &Config) -> Option<(Remote, Waiting)> {
    None
}

/// Connects, writes and purges until the end: running answers may need it until the last has ended.
#[cfg(feature = "redis")]
pub(super) fn keep(waiting: Waiting, shared: &Shared, tasks: &mut Supervisor) {
    use std::rc::Rc;

    use tokio::sync::Mutex;

    use crate::{client::Resolver, runtime::supervisor::OnFailure};

    let Some(redis) = shared.config.load().cache.redis.clone() else { return };
    let resolver = Resolver::system();
    let connect = async move || connection::open(&resolver, &redis).await;
    let (keeper, drain) = (Rc::new(Mutex::new(waiting.keeper(connect))), shared.drain.clone());
    tasks.start("cache", OnFailure::Restart, move || {
        let keeper = Rc::clone(&keeper);
        super::control::until_end(drain.clone(), async move { keeper.lock().await.run().await })
    });
}

#[cfg(not(feature = "redis"))]
pub(super) fn keep(waiting: Waiting, _: &Shared, _: &mut Supervisor) {
    match waiting {}
}

#[cfg(feature = "redis")]
mod connection {
    use redis::RedisConnectionInfo;

    use crate::{
        client::{Resolver, dial},
        config::Redis,
        proxy::cache::remote::Opened,
        runtime::io::Duplex,
    };

    pub(super) async fn open(resolver: &Resolver, redis: &Redis) -> Opened<Box<dyn Duplex + Send>> {
        let stream = dial(resolver, &redis.host, redis.port, redis.tls).await?;
        let mut who = RedisConnectionInfo::default().set_db(i64::from(redis.database));
        if let Some(username) = &redis.username {
            who = who.set_username(username);
        }
        if let Some(password) = &redis.password {
            who = who.set_password(password.reveal());
        }
        Ok((stream, who))
    }
}
