"""Requests and what policies decide about them: by mode, URL and what DNS answers."""

from __future__ import annotations

from stockade import HostRule, Network

__all__ = ["NETWORKS", "PUBLIC", "ROWS"]

PUBLIC, PUBLIC6 = "93.184.216.34", "2606:2800:220:1::1"

NETWORKS = {
    "none": Network(),
    "loopback": Network(mode="loopback"),
    "hosts": Network(
        mode="hosts",
        hosts=(
            HostRule("api.example.com"),
            HostRule("*.example.org", (443, "8000-8010")),  # type: ignore[arg-type]
            HostRule("plain.example.com", (80, 443), secure=False),  # type: ignore[arg-type]
            HostRule("only.example.com", methods=("GET", "HEAD"), paths=("/v1", "/public/")),
            HostRule("db.corp.internal", (443,)),  # type: ignore[arg-type]
            HostRule("localhost", (8080,), secure=False),  # type: ignore[arg-type]
            HostRule("10.0.0.7", (443,)),  # type: ignore[arg-type]
            HostRule("metadata.google.internal", (80,), secure=False),  # type: ignore[arg-type]
            HostRule("bücher.example"),
        ),
    ),
    "ports": Network(mode="ports", ports=(443, "8000-8010")),  # type: ignore[arg-type]
    "full": Network(mode="full"),
}

# A mode, a URL, the addresses that its name stands for, and the host of the plan; - where it is refused.
TABLE = f"""
    none      https://api.example.com/                      {PUBLIC}              -
    none      http://localhost/                             127.0.0.1             -
    none      http://127.0.0.1/                             -                     -
    loopback  http://localhost/                             127.0.0.1             localhost
    loopback  http://localhost:8080/                        ::1                   localhost
    loopback  https://LOCALHOST./                           127.0.0.1,::1         localhost
    loopback  http://db.localhost/                          127.0.0.2             db.localhost
    loopback  http://localhost/                             {PUBLIC}              -
    loopback  http://localhost/                             127.0.0.1,10.0.0.1    -
    loopback  http://localhost/                             169.254.169.254       -
    loopback  http://localhost/                             0.0.0.0               -
    loopback  http://localhost/                             ::                    -
    loopback  http://localhost/                             ::ffff:127.0.0.1      localhost
    loopback  http://localhost/                             ::ffff:10.0.0.1       -
    loopback  http://localhost/                             64:ff9b::7f00:1       -
    loopback  http://127.0.0.1/                             -                     127.0.0.1
    loopback  http://127.1/                                 -                     127.0.0.1
    loopback  http://2130706433/                            -                     127.0.0.1
    loopback  http://0x7f000001/                            -                     127.0.0.1
    loopback  http://0177.0.0.1/                            -                     127.0.0.1
    loopback  http://[::1]/                                 -                     ::1
    loopback  http://[::ffff:127.0.0.1]/                    -                     127.0.0.1
    loopback  http://0.0.0.0/                               -                     -
    loopback  http://0/                                     -                     -
    loopback  http://[::]/                                  -                     -
    loopback  http://10.0.0.1/                              -                     -
    loopback  http://169.254.169.254/                       -                     -
    loopback  https://api.example.com/                      127.0.0.1             -
    loopback  http://localhost.evil.net/                    127.0.0.1             -
    loopback  http://evil.net#@localhost/                   127.0.0.1             -
    loopback  http://localhost@evil.net/                    127.0.0.1             -
    hosts     https://api.example.com/                      {PUBLIC}              api.example.com
    hosts     https://API.Example.COM/                      {PUBLIC}              api.example.com
    hosts     https://api.example.com./                     {PUBLIC}              api.example.com
    hosts     https://api.example.com:443/                  {PUBLIC6}             api.example.com
    hosts     https://api。example.com/                     {PUBLIC}              api.example.com
    hosts     HTTPS://api.example.com/                      {PUBLIC},{PUBLIC6}    api.example.com
    hosts     http://api.example.com/                       {PUBLIC}              -
    hosts     http://api.example.com:443/                   {PUBLIC}              -
    hosts     https://api.example.com:8443/                 {PUBLIC}              -
    hosts     https://api.example.com:0/                    {PUBLIC}              -
    hosts     https://api.example.com:70000/                {PUBLIC}              -
    hosts     https://api.example.com:443:443/              {PUBLIC}              -
    hosts     https://user@api.example.com/                 {PUBLIC}              -
    hosts     https://user:word@api.example.com/            {PUBLIC}              -
    hosts     https://api.example.com@evil.net/             {PUBLIC}              -
    hosts     https://evil.net\\@api.example.com/            {PUBLIC}              -
    hosts     https://evil.net/@api.example.com/            {PUBLIC}              -
    hosts     https://evil.net?@api.example.com/            {PUBLIC}              -
    hosts     https://evil.net/                             {PUBLIC}              -
    hosts     https://example.com/                          {PUBLIC}              -
    hosts     https://sub.api.example.com/                  {PUBLIC}              -
    hosts     https://api.example.com.evil.net/             {PUBLIC}              -
    hosts     https://xapi.example.com/                     {PUBLIC}              -
    hosts     https://api.example.com%2eevil.net/           {PUBLIC}              -
    hosts     https://api%2eexample.com/                    {PUBLIC}              -
    hosts     https://api.example.com%00.evil.net/          {PUBLIC}              -
    hosts     https://{PUBLIC}/                             -                     -
    hosts     https://api.example.com/                      10.0.0.1              -
    hosts     https://api.example.com/                      172.16.0.1            -
    hosts     https://api.example.com/                      192.168.0.1           -
    hosts     https://api.example.com/                      127.0.0.1             -
    hosts     https://api.example.com/                      ::1                   -
    hosts     https://api.example.com/                      169.254.169.254       -
    hosts     https://api.example.com/                      fe80::1               -
    hosts     https://api.example.com/                      fd00:ec2::254         -
    hosts     https://api.example.com/                      100.64.0.1            -
    hosts     https://api.example.com/                      100.100.100.200       -
    hosts     https://api.example.com/                      0.0.0.0               -
    hosts     https://api.example.com/                      255.255.255.255       -
    hosts     https://api.example.com/                      224.0.0.1             -
    hosts     https://api.example.com/                      ff02::1               -
    hosts     https://api.example.com/                      240.0.0.1             -
    hosts     https://api.example.com/                      192.0.2.1             -
    hosts     https://api.example.com/                      198.18.0.1            -
    hosts     https://api.example.com/                      fd00::1               -
    hosts     https://api.example.com/                      fec0::1               -
    hosts     https://api.example.com/                      2001:db8::1           -
    hosts     https://api.example.com/                      ::ffff:10.0.0.1       -
    hosts     https://api.example.com/                      ::ffff:{PUBLIC}       api.example.com
    hosts     https://api.example.com/                      ::7f00:1              -
    hosts     https://api.example.com/                      64:ff9b::a00:1        -
    hosts     https://api.example.com/                      64:ff9b::5db8:d822    api.example.com
    hosts     https://api.example.com/                      64:ff9b:1::a00:1      -
    hosts     https://api.example.com/                      2002:a00:1::          -
    hosts     https://api.example.com/                      2002:7f00:1::         -
    hosts     https://api.example.com/                      2001:0:102:304::80ff:fffe  -
    hosts     https://api.example.com/                      {PUBLIC},10.0.0.1     -
    hosts     https://api.example.com/                      {PUBLIC},127.0.0.1    -
    hosts     https://api.example.com/                      {PUBLIC},169.254.169.254   -
    hosts     https://api.example.com/                      {PUBLIC},::1          -
    hosts     https://a.example.org/                        {PUBLIC}              a.example.org
    hosts     https://a.b.example.org:8005/                 {PUBLIC}              a.b.example.org
    hosts     https://A.EXAMPLE.ORG./                       {PUBLIC}              a.example.org
    hosts     https://example.org/                          {PUBLIC}              -
    hosts     https://a.example.org:8011/                   {PUBLIC}              -
    hosts     https://aexample.org/                         {PUBLIC}              -
    hosts     https://a.example.org.evil.net/               {PUBLIC}              -
    hosts     https://a.example.org/                        10.0.0.1              -
    hosts     http://plain.example.com/                     {PUBLIC}              plain.example.com
    hosts     https://plain.example.com/                    {PUBLIC}              plain.example.com
    hosts     http://plain.example.com:8080/                {PUBLIC}              -
    hosts     https://only.example.com/v1                   {PUBLIC}              only.example.com
    hosts     https://only.example.com/v1/                  {PUBLIC}              only.example.com
    hosts     https://only.example.com/v1/a?q=/../          {PUBLIC}              only.example.com
    hosts     https://only.example.com/%76%31/a             {PUBLIC}              only.example.com
    hosts     https://only.example.com/a/../v1/b            {PUBLIC}              only.example.com
    hosts     https://only.example.com/public               {PUBLIC}              only.example.com
    hosts     https://only.example.com/public/a             {PUBLIC}              only.example.com
    hosts     https://only.example.com/                     {PUBLIC}              -
    hosts     https://only.example.com                      {PUBLIC}              -
    hosts     https://only.example.com/v10                  {PUBLIC}              -
    hosts     https://only.example.com/V1                   {PUBLIC}              -
    hosts     https://only.example.com/v1/../admin          {PUBLIC}              -
    hosts     https://only.example.com/v1/..                {PUBLIC}              -
    hosts     https://only.example.com/v1/%2e%2e/admin      {PUBLIC}              -
    hosts     https://only.example.com/v1/%2E./admin        {PUBLIC}              -
    hosts     https://only.example.com/v1/..%2fadmin        {PUBLIC}              -
    hosts     https://only.example.com/v1/%2e%2e%2fadmin    {PUBLIC}              -
    hosts     https://only.example.com/v1/..%5cadmin        {PUBLIC}              -
    hosts     https://only.example.com/v1/%252e%252e/admin  {PUBLIC}              -
    hosts     https://only.example.com/v1/..;/admin         {PUBLIC}              -
    hosts     https://only.example.com/v1/..;x=y/admin      {PUBLIC}              -
    hosts     https://only.example.com/v1\\..\\admin          {PUBLIC}              -
    hosts     https://only.example.com/v1/%00               {PUBLIC}              -
    hosts     https://only.example.com/v1/%0d%0aX:          {PUBLIC}              -
    hosts     https://only.example.com/v1/%zz               {PUBLIC}              -
    hosts     https://only.example.com//v1/a                {PUBLIC}              -
    hosts     https://only.example.com/?/v1/                {PUBLIC}              -
    hosts     https://only.example.com/#/v1/                {PUBLIC}              -
    hosts     https://only.example.com/admin#/v1            {PUBLIC}              -
    hosts     https://db.corp.internal/                     10.0.0.5              db.corp.internal
    hosts     https://db.corp.internal/                     {PUBLIC}              db.corp.internal
    hosts     https://db.corp.internal/                     127.0.0.1             -
    hosts     https://db.corp.internal/                     ::ffff:127.0.0.1      -
    hosts     https://db.corp.internal/                     64:ff9b::7f00:1       -
    hosts     https://db.corp.internal/                     169.254.169.254       -
    hosts     https://db.corp.internal/                     64:ff9b::a9fe:a9fe    -
    hosts     http://localhost:8080/                        127.0.0.1             localhost
    hosts     http://localhost:8080/                        10.0.0.1              -
    hosts     http://localhost:8081/                        127.0.0.1             -
    hosts     http://127.0.0.1:8080/                        -                     -
    hosts     https://10.0.0.7/                             -                     10.0.0.7
    hosts     https://167772167/                            -                     10.0.0.7
    hosts     https://[::ffff:10.0.0.7]/                    -                     10.0.0.7
    hosts     https://10.0.0.8/                             -                     -
    hosts     http://metadata.google.internal/              169.254.169.254       metadata.google.internal
    hosts     http://metadata.google.internal/              127.0.0.1             -
    hosts     http://metadata.google.internal/              10.0.0.1              -
    hosts     http://169.254.169.254/                       -                     -
    hosts     https://bücher.example/                       {PUBLIC}              xn--bcher-kva.example
    hosts     https://BÜCHER.example./                      {PUBLIC}              xn--bcher-kva.example
    hosts     https://xn--bcher-kva.example/                {PUBLIC}              xn--bcher-kva.example
    hosts     https://bucher.example/                       {PUBLIC}              -
    hosts     ftp://api.example.com/                        {PUBLIC}              -
    hosts     file:///etc/passwd                            {PUBLIC}              -
    hosts     file://api.example.com/etc/passwd             {PUBLIC}              -
    hosts     gopher://api.example.com:443/                 {PUBLIC}              -
    hosts     ws://api.example.com/                         {PUBLIC}              -
    hosts     javascript:alert(1)                           {PUBLIC}              -
    hosts     data:,x                                       {PUBLIC}              -
    hosts     //api.example.com/                            {PUBLIC}              -
    hosts     /v1                                           {PUBLIC}              -
    hosts     api.example.com                               {PUBLIC}              -
    hosts     https:api.example.com                         {PUBLIC}              -
    hosts     https:/api.example.com                        {PUBLIC}              -
    hosts     https:///api.example.com                      {PUBLIC}              -
    hosts     https://                                      {PUBLIC}              -
    hosts     https://:443/                                 {PUBLIC}              -
    hosts     https://[api.example.com]/                    {PUBLIC}              -
    ports     https://any.example.com/                      {PUBLIC}              any.example.com
    ports     http://any.example.com:8000/                  {PUBLIC}              any.example.com
    ports     http://any.example.com/                       {PUBLIC}              -
    ports     https://{PUBLIC}/                             -                     {PUBLIC}
    ports     https://any.example.com:8010/                 {PUBLIC6}             any.example.com
    ports     https://any.example.com:8011/                 {PUBLIC}              -
    ports     https://any.example.com/                      10.0.0.1              -
    ports     https://any.example.com/                      127.0.0.1             -
    ports     https://any.example.com/                      ::1                   -
    ports     https://any.example.com/                      169.254.169.254       -
    ports     https://any.example.com/                      {PUBLIC},192.168.1.1  -
    ports     https://any.example.com/                      64:ff9b::a9fe:a9fe    -
    ports     https://any.example.com/                      64:ff9b::7f00:1       -
    ports     https://any.example.com/                      2002:c0a8:101::1      -
    ports     https://any.example.com/                      ::ffff:192.168.1.1    -
    ports     https://any.example.com/                      0.0.0.0               -
    ports     https://any.example.com/                      100.64.0.1            -
    ports     https://any.example.com/                      224.0.0.1             -
    ports     https://intranet/                             {PUBLIC}              -
    ports     https://db.corp.internal/                     {PUBLIC}              -
    ports     https://localhost/                            {PUBLIC}              -
    ports     https://metadata.google.internal/             {PUBLIC}              -
    ports     https://169.254.169.254/                      -                     -
    ports     https://2852039166/                           -                     -
    ports     https://0xa9fea9fe/                           -                     -
    ports     https://[::ffff:169.254.169.254]/             -                     -
    ports     https://[64:ff9b::a9fe:a9fe]/                 -                     -
    ports     https://[fe80::1%25eth0]/                     -                     -
    ports     https://10.0.0.1/                             -                     -
    ports     https://127.0.0.1/                            -                     -
    full      https://any.example.com/                      {PUBLIC}              any.example.com
    full      http://any.example.com:81/                    10.0.0.1              any.example.com
    full      http://any.example.com/                       127.0.0.1             any.example.com
    full      http://10.0.0.1/                              -                     10.0.0.1
    full      http://[fd00::1]/                             -                     fd00::1
    full      http://any.example.com/                       169.254.169.254       -
    full      http://any.example.com/                       {PUBLIC},169.254.169.254   -
    full      http://any.example.com/                       64:ff9b::a9fe:a9fe    -
    full      http://any.example.com/                       ::ffff:169.254.169.254     -
    full      http://any.example.com/                       fe80::1               -
    full      http://any.example.com/                       fd00:ec2::254         -
    full      http://any.example.com/                       100.100.100.200       -
    full      http://any.example.com/                       168.63.129.16         -
    full      http://any.example.com/                       0.0.0.0               -
    full      http://any.example.com/                       255.255.255.255       -
    full      http://any.example.com/                       224.0.0.1             -
    full      http://metadata.google.internal/              {PUBLIC}              -
    full      http://METADATA.google.internal./             {PUBLIC}              -
    full      http://metadata/                              {PUBLIC}              -
    full      http://169.254.169.254/                       -                     -
    full      http://169.254.43518/                         -                     -
    full      http://0xA9.254.0251.254/                     -                     -
    full      http://[::a9fe:a9fe]/                         -                     -
    full      http://user@any.example.com/                  {PUBLIC}              -
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]
