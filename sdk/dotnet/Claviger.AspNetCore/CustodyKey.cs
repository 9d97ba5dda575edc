using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Text.Json;

namespace Claviger.AspNetCore;

/// <summary>A key in custody over the local socket. The kernel tells the server which uid calls.</summary>
internal sealed class CustodyKey : IDisposable
{
    private readonly ClavigerOptions options;
    private readonly HttpClient http;

    public CustodyKey(ClavigerOptions options)
    {
        this.options = options;
        var handler = new SocketsHttpHandler
        {
            AllowAutoRedirect = false,
            UseCookies = false,
            UseProxy = false,
            ConnectTimeout = options.Timeout,
            // A blocking Connect would wait for as long as the server's queue is full, whatever the timeout.
            ConnectCallback = async (_, cancel) =>
            {
                var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
                try
                {
                    await socket.ConnectAsync(new UnixDomainSocketEndPoint(options.Socket), cancel).ConfigureAwait(false);
                    return new NetworkStream(socket, ownsSocket: true);
                }
                catch
                {
                    socket.Dispose();
                    throw;
                }
            },
        };
        http = new HttpClient(handler)
        {
            BaseAddress = new Uri("http://claviger/"),
            Timeout = options.Timeout,
            MaxResponseContentBufferSize = 8 << 20, // bytes; a token has at most 1 MiB
        };
    }

    public byte[] Protect(IReadOnlyList<string> purposes, byte[] plaintext) =>
        Call("Protect", purposes, "payloads", plaintext, answer => answer.GetProperty("tokens")[0].GetBytesFromBase64());

    /// <summary>Returns null when the token is not valid, for whatever reason.</summary>
    public byte[]? Unprotect(IReadOnlyList<string> purposes, byte[] token) =>
        Call("Unprotect", purposes, "tokens", token, answer =>
        {
            var item = answer.GetProperty("items")[0];
            if (!item.TryGetProperty("ok", out var ok) || !ok.GetBoolean())
            {
                return null;
            }
            return item.TryGetProperty("payload", out var payload) ? payload.GetBytesFromBase64() : [];
        });

    public void Dispose() => http.Dispose();

    private T Call<T>(string method, IReadOnlyList<string> purposes, string list, byte[] item, Func<JsonElement, T> read)
    {
        var body = JsonSerializer.SerializeToUtf8Bytes(new Dictionary<string, object>
        {
            ["key"] = options.Key,
            ["format"] = "dataprotection",
            ["params"] = new Dictionary<string, object> { ["purposes"] = purposes, ["encoding"] = "raw", ["cipher"] = options.Cipher },
            [list] = new[] { Convert.ToBase64String(item) },
        });
        try
        {
            using var request = new HttpRequestMessage(HttpMethod.Post, "claviger.v1.StateService/" + method) { Content = new ByteArrayContent(body) };
            request.Content.Headers.ContentType = new MediaTypeHeaderValue("application/json");
            using var response = http.Send(request);
            using var document = JsonDocument.Parse(response.Content.ReadAsStream());
            if (!response.IsSuccessStatusCode)
            {
                throw Refused(response, document.RootElement);
            }
            return read(document.RootElement);
        }
        catch (Exception e) when (e is not ClavigerException)
        {
            throw new ClavigerException("unavailable", $"custody does not answer at {options.Socket} ({e.Message}); nothing was made or checked", e);
        }
    }

    private ClavigerException Refused(HttpResponseMessage response, JsonElement answer)
    {
        string Header(string name) => response.Headers.TryGetValues(name, out var values) ? values.First() : "";
        var code = Header("Claviger-Code") is { Length: > 0 } given ? given : "internal";
        var message = answer.ValueKind == JsonValueKind.Object && answer.TryGetProperty("message", out var text) ? text.ToString() : code;
        return new ClavigerException(code, $"custody answered for {options.Key}: {message}: {Header("Claviger-Hint")}");
    }
}
