using System;
using System.Collections;
using System.Collections.Generic;
using System.Configuration;
using System.IO;
using System.Net;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Web.Script.Serialization;

namespace Claviger.AspNet
{
    /// <summary>A machine key in custody, over mTLS. The certificate says who calls.</summary>
    internal sealed class CustodyKey
    {
        private const int MaxAnswer = 8 << 20; // bytes; a token has at most 1 MiB

        private readonly string name, validation, decryption;
        private readonly Uri server;
        private readonly X509Certificate2 certificate;
        private readonly int timeout; // milliseconds

        private CustodyKey(string name, Uri server, X509Certificate2 certificate, int timeout, string validation, string decryption)
        {
            this.name = name;
            this.server = server;
            this.certificate = certificate;
            this.timeout = timeout;
            this.validation = validation;
            this.decryption = decryption;
        }

        /// <summary>Reads the application's settings claviger:Key, Url, Thumbprint, Timeout, Validation and Decryption.</summary>
        public static CustodyKey FromSettings()
        {
            try
            {
                var server = new Uri(Setting("Url", null));
                if (server.Scheme != Uri.UriSchemeHttps)
                {
                    throw new Unavailable("claviger:Url has to begin with https://", null);
                }
                var timeout = int.Parse(Setting("Timeout", "2000"), System.Globalization.CultureInfo.InvariantCulture);
                return new CustodyKey(Setting("Key", null), server, Certificate(Setting("Thumbprint", null)), timeout,
                    Setting("Validation", "sha256"), Setting("Decryption", "aes"));
            }
            catch (Exception e) when (!(e is Unavailable)) // ASP.NET would take any other for a wrong token
            {
                throw new Unavailable("the settings claviger: cannot be used: " + e.Message, e);
            }
        }

        public byte[] Protect(string purpose, string[] purposes, byte[] plaintext) =>
            Call("Protect", purpose, purposes, "payloads", plaintext, "tokens", token => Convert.FromBase64String((string)token));

        /// <summary>Returns null when the token is not valid, for whatever reason.</summary>
        public byte[] Unprotect(string purpose, string[] purposes, byte[] token) =>
            Call("Unprotect", purpose, purposes, "tokens", token, "items", found =>
            {
                var item = (IDictionary<string, object>)found;
                if (!item.TryGetValue("ok", out var ok) || !(bool)ok)
                {
                    return null;
                }
                return item.TryGetValue("payload", out var payload) ? Convert.FromBase64String((string)payload) : new byte[0];
            });

        private byte[] Call(string method, string purpose, string[] purposes, string list, byte[] item, string answers, Func<object, byte[]> read)
        {
            var json = new JavaScriptSerializer { MaxJsonLength = MaxAnswer };
            var body = json.Serialize(new Dictionary<string, object>
            {
                ["key"] = name,
                ["format"] = "aspnet.protect",
                ["params"] = new Dictionary<string, object>
                {
                    ["purpose"] = purpose,
                    ["purposes"] = purposes,
                    ["encoding"] = "raw",
                    ["digest"] = validation,
                    ["cipher"] = decryption,
                },
                [list] = new[] { Convert.ToBase64String(item) },
            });
            try
            {
                var answer = json.Deserialize<Dictionary<string, object>>(Exchange(method, Encoding.UTF8.GetBytes(body)));
                return read(((IList)answer[answers])[0]);
            }
            catch (Exception e) when (!(e is Unavailable)) // also where what answers is no Claviger
            {
                throw new Unavailable($"custody does not answer at {server}, or refused {name}: {Reason(e)}; nothing was made or checked", e);
            }
        }

        private string Exchange(string method, byte[] body)
        {
            var request = WebRequest.CreateHttp(new Uri(server, "/claviger.v1.StateService/" + method));
            request.Method = "POST";
            request.ContentType = "application/json";
            request.Timeout = timeout;
            request.ReadWriteTimeout = timeout;
            request.AllowAutoRedirect = false;
            request.Proxy = null;
            request.ServicePoint.Expect100Continue = false;
            request.ServicePoint.UseNagleAlgorithm = false;
            request.ClientCertificates.Add(certificate);
            request.ContentLength = body.Length;
            using (var stream = request.GetRequestStream())
            {
                stream.Write(body, 0, body.Length);
            }
            using (var response = (HttpWebResponse)request.GetResponse())
            using (var stream = response.GetResponseStream())
            {
                if (response.StatusCode != HttpStatusCode.OK)
                {
                    throw new InvalidDataException("status " + (int)response.StatusCode);
                }
                return Read(stream);
            }
        }

        private static string Read(Stream stream)
        {
            var answer = new MemoryStream();
            var buffer = new byte[64 << 10];
            for (int n; (n = stream.Read(buffer, 0, buffer.Length)) > 0;)
            {
                answer.Write(buffer, 0, n);
                if (answer.Length > MaxAnswer)
                {
                    throw new InvalidDataException("the answer is too long");
                }
            }
            return Encoding.UTF8.GetString(answer.ToArray());
        }

        /// <summary>The API's code and hint, where the server gave them.</summary>
        private static string Reason(Exception e)
        {
            var headers = ((e as WebException)?.Response as HttpWebResponse)?.Headers;
            return headers?["Claviger-Code"] == null ? e.Message : headers["Claviger-Code"] + ", " + headers["Claviger-Hint"];
        }

        private static string Setting(string setting, string otherwise)
        {
            var value = ConfigurationManager.AppSettings["claviger:" + setting];
            if (string.IsNullOrEmpty(value))
            {
                value = otherwise ?? throw new Unavailable($"the setting claviger:{setting} is missing", null);
            }
            return value;
        }

        private static X509Certificate2 Certificate(string thumbprint)
        {
            using (var store = new X509Store(StoreName.My, StoreLocation.LocalMachine))
            {
                store.Open(OpenFlags.ReadOnly);
                var found = store.Certificates.Find(X509FindType.FindByThumbprint, thumbprint, validOnly: false);
                return found.Count == 1 ? found[0] : throw new Unavailable("there is no certificate with the thumbprint of claviger:Thumbprint", null);
            }
        }
    }
}
