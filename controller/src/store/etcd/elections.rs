//! Leases, and the one key that says who leads.

use super::{
    EtcdStore, Manner, Number,
    wire::{
        KeyValue, LeaseAnswer, LeaseGrant, LeaseName, PutRequest, RangeRequest, Request, TxnRequest, TxnResponse,
        WireCompare,
    },
};
use crate::{
    leader::{Elections, LEADER_KEY, Leader, LeaseId, Seat},
    store::{Compare, Revision, StoreError, etcd::wire::Blob},
};
use futures::future::BoxFuture;
use std::time::Duration;

fn seat(found: &KeyValue) -> Seat {
    let unknown = || Leader { name: "a controller of another version".to_owned(), url: String::new() };
    Seat {
        leader: serde_json::from_slice(&found.value.0).unwrap_or_else(|_| unknown()),
        lease: LeaseId(found.lease.0),
        token: Revision(found.mod_revision.0),
    }
}

impl EtcdStore {
    async fn try_to_take(&self, lease: LeaseId, leader: &Leader) -> Result<Option<Seat>, StoreError> {
        let value = serde_json::to_vec(leader).map_err(|error| StoreError::Setting(error.to_string()))?;
        let key = self.full(LEADER_KEY);
        let range = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let request = TxnRequest {
            compare: vec![WireCompare::new(&self.prefix, Compare::Absent(LEADER_KEY.to_owned()))],
            success: vec![Request::Put(PutRequest { key, value: Blob(value), lease: Some(Number(lease.0)) })],
            failure: vec![Request::Range(range)],
        };
        // Not repeated here: whether it was taken is seen when it is asked for again.
        let answer: TxnResponse = self.client.call("/v3/kv/txn", &request, Manner::WRITE).await?;
        if answer.succeeded {
            let token = Revision(answer.header.revision.0);
            return Ok(Some(Seat { leader: leader.clone(), lease, token }));
        }
        let found = answer.responses.into_iter().find_map(|answer| answer.response_range);
        Ok(found.and_then(|mut range| range.kvs.pop()).as_ref().map(seat))
    }
}

impl Elections for EtcdStore {
    fn seat(&self) -> BoxFuture<'_, Result<Option<Seat>, StoreError>> {
        Box::pin(async move { Ok(self.find(LEADER_KEY).await?.as_ref().map(seat)) })
    }

    fn grant(&self, ttl: Duration) -> BoxFuture<'_, Result<LeaseId, StoreError>> {
        Box::pin(async move {
            let request = LeaseGrant { ttl: Number(ttl.as_secs()) };
            let answer: LeaseAnswer = self.client.call("/v3/lease/grant", &request, Manner::QUICK).await?;
            Ok(LeaseId(answer.id.0))
        })
    }

    fn take<'a>(&'a self, lease: LeaseId, leader: &'a Leader) -> BoxFuture<'a, Result<Option<Seat>, StoreError>> {
        Box::pin(self.try_to_take(lease, leader))
    }

    fn renew(&self, lease: LeaseId) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move {
            let request = LeaseName { id: Number(lease.0) };
            let answer: LeaseAnswer = self.client.call_stream("/v3/lease/keepalive", &request, Manner::QUICK).await?;
            Ok(answer.ttl > Number(0))
        })
    }

    fn revoke(&self, lease: LeaseId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let request = LeaseName { id: Number(lease.0) };
            match self.client.call::<_, serde_json::Value>("/v3/lease/revoke", &request, Manner::QUICK).await {
                Ok(_) => Ok(()),
                Err(failure) if failure.is_lease_gone() => Ok(()),
                Err(failure) => Err(failure.into()),
            }
        })
    }
}
