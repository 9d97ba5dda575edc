using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;

namespace Claviger.AspNetCore;

/// <summary>
/// Notes that custody failed while a request was answered. Cookie authentication
/// and antiforgery take every exception of a protector for a token that is wrong:
/// their answer would be that of a user who is logged out.
/// </summary>
internal sealed class Watch : IStartupFilter
{
    private static readonly AsyncLocal<Watch?> Current = new();

    private ClavigerException? failed;

    public static T Over<T>(Func<T> call)
    {
        try
        {
            return call();
        }
        catch (ClavigerException e)
        {
            if (Current.Value is { } watch)
            {
                watch.failed ??= e;
            }
            throw;
        }
    }

    /// <summary>Puts a middleware before all others: where custody failed, the answer is an error.</summary>
    public Action<IApplicationBuilder> Configure(Action<IApplicationBuilder> next) => app =>
    {
        app.Use(async (context, rest) =>
        {
            var watch = Current.Value = new Watch();
            context.Response.OnStarting(() => watch.failed is null ? Task.CompletedTask : throw watch.failed);
            await rest(context);
            if (watch.failed is { } failed)
            {
                if (context.Response.HasStarted)
                {
                    context.Abort();
                    return;
                }
                context.Response.Clear();
                throw failed;
            }
        });
        next(app);
    };
}
