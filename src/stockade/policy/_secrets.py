"""Which variables of the host's environment look like secrets, by their names and by their values."""

from __future__ import annotations

import re
from functools import cache
from typing import Final

__all__ = ["is_sensitive", "names_a_secret"]

_DATABASES: Final = (
    "DATABASE|DB|SQL|PG|POSTGRES|POSTGRESQL|MYSQL|MARIADB|MSSQL|SQLALCHEMY|JDBC|ORACLE|SNOWFLAKE|REDSHIFT|BIGQUERY|"
    "CLICKHOUSE|COCKROACH|MONGO|MONGODB|COUCHDB|CASSANDRA|NEO4J|INFLUX|INFLUXDB|ELASTIC|ELASTICSEARCH|OPENSEARCH|"
    "REDIS|REDISCLOUD|REDISTOGO|VALKEY|MEMCACHE|MEMCACHED|CACHE|QUEUE|BROKER|CELERY|AMQP|CLOUDAMQP|RABBITMQ|KAFKA|NATS|"
    "MQTT|SUPABASE|SMTP|MAIL|MAILER|EMAIL|IMAP|LDAP|SENTRY|S3|STORAGE"
)

_NAMES: Final = (
    # What steers loaders and interpreters.
    r"^(LD_|DYLD_|GCONV_PATH|PYTHON|NODE_OPTIONS|NODE_PATH|PERL5|PERLLIB|RUBYOPT|RUBYLIB|BASH_ENV|ENV$|IFS$"
    r"|JAVA_TOOL_OPTIONS|_JAVA_OPTIONS|JDK_JAVA_OPTIONS|CLASSPATH$)"
    # Families of clouds, agents and stores of secrets.
    r"|^(AWS_|AZURE_|ARM_|GOOGLE_|GCP_|GCLOUD_|CLOUDSDK_|ALIBABA|ALICLOUD|ALIYUN|TENCENTCLOUD_|OCI_|HCLOUD_|IBMCLOUD_"
    r"|DIGITALOCEAN_|LINODE_|SSH_|GPG_|GNUPG|DOCKER_|REGISTRY_|KUBE|HELM_|VAULT_|CONSUL_|NOMAD_|OP_|BW_|SOPS_|AGE_"
    r"|TF_VAR_|TF_TOKEN_|PULUMI_|CI_JOB_|ACTIONS_)"
    # Words that give it away wherever they stand.
    r"|SECRET|TOKEN|PASSW|PASSPHRASE|PWD|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|AUTH(?!OR(?!I))|COOKIE|SESSION|BEARER"
    r"|KEYSTORE|KEYRING|KEYTAB|KEYFILE|NETRC|PGPASS|CONN(ECTION)?_?STR|WEBHOOK|MNEMONIC|SIGNATURE|SIGNING"
    # Words that do where they stand alone.
    r"|(^|[_.-])(PASS|KEYS?|CREDS?|PAT|SK|DSN|PIN|OTP|TOTP|MFA|SALT|SAS|PEM|PFX|P12|HMAC|JWT|LICENSE)([_.-]|[0-9]*$)"
    # Where a proxy, a database or a queue is, often with a password.
    r"|_PROXY$"
    rf"|(^|_)({_DATABASES})[A-Z0-9_]*_?(URL|URI|DSN)S?$|^(DATABASE|JDBC)_?UR[LI]"
)

_VALUES: Final = (
    r"://[^/?#\s@]*@"  # a URL with a user
    r"|-----BEGIN [A-Z0-9 ]*(PRIVATE|KEY|CERTIFICATE|PGP)"
    r"|\beyJ[A-Za-z0-9_-]{8,}\."  # a JWT
    r"|(?i:password|passwd|pwd|secret|token|api_?key|account_?key|access_?key|private_?key|signature)[\"']?\s*[=:]\s*\S"
    r"|\b(Bearer|Basic)\s+[A-Za-z0-9+/_.=-]{8}"
    r"|\b(A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{12}"
    r"|\bgh[opsur]_[A-Za-z0-9]{16}|\bgithub_pat_|\bglpat-|\bgl[a-z]{2,6}-[A-Za-z0-9_-]{16}"
    r"|\b[spr]k_(live|test)_|\bwhsec_|\bsk-[A-Za-z0-9_-]{16}"
    r"|\bxox[a-z]-|\bxapp-|hooks\.slack\.com/|discord(app)?\.com/api/webhooks/"
    r"|\bAIza[A-Za-z0-9_-]{20}|\bya29\.|\bGOCSPX-"
    r"|\bnpm_[A-Za-z0-9]{20}|\bpypi-[A-Za-z0-9_-]{16}|\brubygems_|\bhf_[A-Za-z0-9]{16}|\bdckr_pat_|\bdop_v1_|\bdoo_v1_"
    r"|\bSG\.[A-Za-z0-9_-]{10,}\.|\bshp(at|ca|pa|ss)_|\bhv[sbr]\.[A-Za-z0-9_-]{16}|\bsq0[a-z]{3}-|\bATATT3|\bglsa_"
    r"|\bgsk_[A-Za-z0-9]{16}|\bxai-[A-Za-z0-9]{16}|\bnvapi-|\br8_[A-Za-z0-9]{16}|\blin_api_|\bfigd_|\bsbp_[a-f0-9]{16}"
    r"|\bAGE-SECRET-KEY-|\bPMAK-|\bdapi[a-f0-9]{32}"
)


@cache
def _pattern(text: str, flags: int = 0) -> re.Pattern[str]:
    """Compiles one of them when it is first used: that takes longer than all else in this module."""
    return re.compile(text, flags)


def names_a_secret(name: str) -> bool:
    """Whether a name is one under which secrets are kept, or loaders and interpreters steered.

    Args:
        name: The name of a variable.
    """
    return _pattern(_NAMES, re.IGNORECASE).search(name) is not None


def is_sensitive(name: str, value: str) -> bool:
    """Whether a variable looks like a secret by its name or its value, or steers loaders and interpreters.

    Args:
        name: Its name.
        value: Its value.
    """
    return names_a_secret(name) or _pattern(_VALUES).search(value) is not None
