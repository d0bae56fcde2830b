//! What a reload would change, and whether it can without a restart.

use super::Config;

/// Sections that differ. A reload applies each through the part that owns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Backends came, went, or have other fields.
    pub backends: bool,
    /// How backends are chosen, tried again and probed.
    pub routing: bool,
    /// The least weight of log lines, or their form.
    pub log: bool,
    /// Tokens of the admin plane.
    pub access: bool,
    /// Any other section.
    pub other: bool,
}

impl Changes {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Compares a new configuration with the running one.
///
/// # Errors
/// The fields whose change needs a restart; nothing of the new configuration may be applied then.
pub fn diff(old: &Config, new: &Config) -> Result<Changes, Vec<&'static str>> {
    let fixed = [
        ("listen", old.listen != new.listen),
        ("tls", old.tls != new.tls),
        ("admin", old.admin.at != new.admin.at),
        ("admin_tls", old.admin.tls != new.admin.tls),
        ("workers", old.workers != new.workers),
        ("profile", old.profile != new.profile),
        ("cache.capacity", old.cache.capacity != new.cache.capacity),
        ("cache.redis", old.cache.redis != new.cache.redis),
        ("cache.key_file", old.cache.key != new.cache.key),
        ("limits.header_bytes", old.limits.header_bytes != new.limits.header_bytes),
        ("limits.header_timeout", old.limits.header_timeout != new.limits.header_timeout),
        ("log.format", old.log.json != new.log.json),
        // Turning it off needs none: the lines are just not made.
        ("log.access", new.log.access && !old.log.access),
    ];
    let restart: Vec<_> = fixed.iter().filter(|(_, differs)| *differs).map(|(field, _)| *field).collect();
    if !restart.is_empty() {
        return Err(restart);
    }
    Ok(Changes {
        backends: old.backends != new.backends,
        routing: (&old.routing, &old.retry, &old.health, &old.zone)
            != (&new.routing, &new.retry, &new.health, &new.zone),
        log: old.log != new.log,
        access: old.admin != new.admin,
        other: (
            &old.trusted_proxies,
            old.debug_headers,
            &old.cors,
            old.timeouts,
            old.stream,
            old.resume,
            old.limits,
            old.drain,
        ) != (
            &new.trusted_proxies,
            new.debug_headers,
            &new.cors,
            new.timeouts,
            new.stream,
            new.resume,
            new.limits,
            new.drain,
        ) || (&old.cache, &old.interruption, &old.compression, old.egress, &old.normalize)
            != (&new.cache, &new.interruption, &new.compression, new.egress, &new.normalize),
    })
}
