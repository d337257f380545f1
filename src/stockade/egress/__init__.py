"""Requests that guests make over the network: decided by the policy, and made by the host."""

from stockade.egress._client import INSTALL, Client, is_installed
from stockade.egress._credential import Credential, Credentials, credentials_under
from stockade.egress._decision import Refusal, RequestPlan, pin, refusal_of
from stockade.egress._exchange import Answer, Exchange, Request
from stockade.egress._failure import FailureCode, RequestFailed
from stockade.egress._functions import http_functions
from stockade.egress._guest import GuestNetwork
from stockade.egress._headers import read_headers
from stockade.egress._meter import NetworkUse
from stockade.egress._url import BadUrl, Target, parse_url

__all__ = [
    "INSTALL",
    "Answer",
    "BadUrl",
    "Client",
    "Credential",
    "Credentials",
    "Exchange",
    "FailureCode",
    "GuestNetwork",
    "NetworkUse",
    "Refusal",
    "Request",
    "RequestFailed",
    "RequestPlan",
    "Target",
    "credentials_under",
    "http_functions",
    "is_installed",
    "parse_url",
    "pin",
    "read_headers",
    "refusal_of",
]
